"""What stands in every rank's buffers, by the plans alone: transfers delivered slice by slice."""

from typing import Any, NamedTuple

import numpy as np

from lvsa.exchange.needed import NeededPlan
from lvsa.exchange.ring import RingPlan
from lvsa.shards import Shards


class Turn(NamedTuple):
    """One round of transfers of a rank, in tokens of the sequence.

    Args:
        leaving, arriving: contents of the buffers that slices leave and enter.
        sends, receives: the slices.
        block: number of the plan's block that stands in ``arriving``; None for none.
    """

    leaving: np.ndarray
    arriving: np.ndarray
    sends: tuple[Any, ...]
    receives: tuple[Any, ...]
    block: int | None


def _turns(plan: NeededPlan | RingPlan) -> list[tuple[Any, Any, int, int | None]]:
    if isinstance(plan, NeededPlan) and plan.ring is not None:
        return _turns(plan.ring)
    if isinstance(plan, RingPlan):
        return [(step.sends, step.receives, step.tokens, step.block) for step in plan.steps]
    block = 1 if len(plan.blocks) > 1 else None
    return [(plan.sends, plan.receives, plan.received_tokens, block)]


def deliver(shards: Shards, plans: list[Any]) -> list[list[Turn]]:
    """The turns of every rank. Slices between two ranks meet in their order, and must be equal.

    Args:
        plans: of all ranks at one offset.
    """
    rows = [p.ring.rows if getattr(p, "ring", None) is not None else p.rows for p in plans]
    held = [part.numpy() + shards.token_range(rank)[0] for rank, part in enumerate(rows)]
    by_rank = [_turns(plan) for plan in plans]
    turns: list[list[Turn]] = [[] for _ in plans]
    for number in range(len(by_rank[0])):
        arriving = [np.full(of_rank[number][2], -1) for of_rank in by_rank]
        for reader, of_rank in enumerate(by_rank):
            for sender in {part.peer for part in of_rank[number][1]}:
                expected = [part for part in of_rank[number][1] if part.peer == sender]
                sent = [part for part in by_rank[sender][number][0] if part.peer == reader]
                for a, b in zip(expected, sent, strict=True):
                    assert a.tokens == b.tokens > 0
                    arriving[reader][a.start : a.stop] = held[sender][b.start : b.stop]
        for rank, (sends, receives, _, block) in enumerate(of[number] for of in by_rank):
            assert len(sends) == len({*sends}) and (arriving[rank] >= 0).all()
            received = [r for of in by_rank for r in of[number][1] if r.peer == rank]
            assert sum(s.tokens for s in sends) == sum(r.tokens for r in received)
            turns[rank].append(Turn(held[rank], arriving[rank], sends, receives, block))
        held = arriving
    assert len({len(of_rank) for of_rank in by_rank}) == 1, "all ranks take as many turns"
    return turns
