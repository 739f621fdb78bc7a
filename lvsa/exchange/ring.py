"""Frames passed from neighbor to neighbor, both ways, each as far as somebody attends it.

A rank packs the frames of its shard in two orders, one for either way round, those that go
furthest first: what a hop carries on is then the beginning of what came. At step s a rank holds
what began at the ranks s to its left and s to its right, attends what its queries do of it, and
passes on what is attended further along. What all ranks attend goes half the way round to either
side, the window of a neighbor one hop. (Ring attention: Liu et al., arXiv 2310.01889.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lvsa.comm import wait_all
from lvsa.exchange.base import (
    Exchange,
    ExchangePlan,
    KVBlock,
    Phase,
    Slice,
    block_plan,
    own_block,
    pack_rows,
    queries_of,
    slices_of,
    tokens_of,
    unpack_kv,
)
from lvsa.layout import pack
from lvsa.pattern import Bools, Ints
from lvsa.shards import Shards, TokenRange


@dataclass(frozen=True)
class RingStep:
    """A turn of the ring.

    Args:
        sends: slices of the buffer at hand, to the next rank and to the previous one.
        receives: slices of the buffer that this step fills.
        tokens: length of that buffer.
        block: number of the plan's block that is computed on it; None for none.
    """

    sends: tuple[Slice, ...]
    receives: tuple[Slice, ...]
    tokens: int
    block: int | None


@dataclass(frozen=True)
class RingPlan(ExchangePlan):
    """The turns of one rank.

    Args:
        rows: ``[n]`` int64, tokens of the own shard as they are packed.
        steps: the turns.
    """

    rows: Tensor
    steps: tuple[RingStep, ...]

    def to(self, device: torch.device | str) -> "RingPlan":
        return replace(super().to(device), rows=self.rows.to(device))


class Reach(NamedTuple):
    """How many hops the frames of an owner travel, each ``[T]``."""

    right: Ints
    left: Ints


def reach(shards: Shards, attended: Bools) -> list[Reach]:
    """For each owner how far its frames go, with the fewest hops that lead to all who attend them.

    Of equally many hops those are taken that are most alike on both sides.
    """
    N = shards.world
    needed = np.stack([shards.frames_needed(reader, attended) for reader in range(N)])
    far = []
    for owner in range(N):
        # By distance to the right; 0 is the owner.
        reads = np.roll(needed, -owner, axis=0) & (shards.tokens_held(owner) > 0)
        lefts = np.zeros((N, shards.grid.frames), dtype=np.int64)
        for right in reversed(range(N - 1)):
            # Whoever stands beyond `right` is reached from the other side.
            lefts[right] = np.where(reads[right + 1], N - 1 - right, lefts[right + 1])
        rights = np.arange(N)[:, None]
        cost = ((rights + lefts) * N + np.maximum(rights, lefts)) * N + N - 1 - rights
        best = cost.argmin(0)
        far.append(Reach(best, lefts[best, np.arange(shards.grid.frames)]))
    return far


class Ring(Exchange[RingPlan]):
    """Frames passed along a ring in both directions, each only as far as somebody attends it."""

    name = "ring"

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> RingPlan:
        N, far = shards.world, reach(shards, attended)
        anchors: Bools = np.asarray(attended.all(0))
        next_rank, previous = (rank + 1) % N, (rank - 1) % N

        def cargo(owner: int, hops: Ints, s: int) -> list[TokenRange]:
            """What of an owner's shard goes s hops, those that go further first."""
            return _frames_of(shards, owner, hops, anchors, s)

        def going(s: int, shift: int) -> list[list[TokenRange]]:
            """What goes a step s to the right and to the left, from owners at s + shift."""
            right, left = (rank - s - shift) % N, (rank + s + shift) % N
            return [cargo(right, far[right].right, s), cargo(left, far[left].left, s)]

        at_hand = going(1, -1)
        rows = at_hand[:1] if at_hand[0] == at_hand[1] else at_hand
        starts = [0, sum(b - a for a, b in rows[0]) if len(rows) > 1 else 0]
        blocks, steps = [own_block(shards, attended, rank)], []
        for s in range(1, max(int(way.max()) for both in far for way in both) + 1):
            sends = [
                Slice(peer, start, start + sum(b - a for a, b in ranges))
                for peer, start, ranges in zip(
                    (next_rank, previous), starts, going(s, -1), strict=True
                )
            ]
            arriving = going(s, 0)
            receives = slices_of(arriving, (previous, next_rank))
            tokens, block = receives[-1].stop, None
            if tokens:
                pieces = pack(token_range for ranges in arriving for token_range in ranges)
                candidate = block_plan(shards, attended, rank, pieces, tokens)
                if candidate.layout.tiles:
                    block = len(blocks)
                    blocks.append(candidate)
            steps.append(
                RingStep(
                    tuple(part for part in sends if part.tokens),
                    tuple(part for part in receives if part.tokens),
                    tokens,
                    block,
                )
            )
            starts = [part.start for part in receives]
        return RingPlan(
            tuple(blocks),
            sum(step.tokens for step in steps),
            rows=tokens_of((r for part in rows for r in part), shards.token_range(rank)[0]),
            steps=tuple(steps),
        )

    @classmethod
    def phases(cls, shards: Shards, attended: Bools) -> list[Phase]:
        N, held, queries = shards.world, shards.held, queries_of(shards, attended)
        right, left = (np.stack(way) for way in zip(*reach(shards, attended), strict=True))
        ranks, phases = np.arange(N), []
        for s in range(1, max(right.max(), left.max()) + 1):
            # By receiver: what began s ranks to its left, and s to its right.
            came = [np.roll(held * (way >= s), by, axis=0) for way, by in ((right, s), (left, -s))]
            tokens = np.concatenate([part.sum(1) for part in came])
            sender = np.concatenate([(ranks - 1) % N, (ranks + 1) % N])
            moves = tokens > 0
            phases.append(
                Phase(
                    sender[moves],
                    np.tile(ranks, 2)[moves],
                    tokens[moves],
                    (queries * (came[0] + came[1])).sum(1),
                )
            )
        return phases

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        return go_round(self, self.plans[offset], k_BLHD, v_BLHD)


def go_round(
    exchange: Exchange[Any], plan: RingPlan, k_BLHD: Tensor, v_BLHD: Tensor
) -> Iterator[KVBlock]:
    """The stream of `Ring`: a block is attended while the next one travels."""
    pending: KVBlock | None = KVBlock(k_BLHD, v_BLHD, plan.blocks[0].layout)
    held = pack_rows(k_BLHD, v_BLHD, plan.rows) if plan.steps else k_BLHD
    for number, step in enumerate(plan.steps, start=1):
        arriving = held.new_empty((step.tokens, *held.shape[1:]))
        work = exchange.start_transfers(held, step.sends, arriving, step.receives)
        if pending is not None:
            yield pending
        wait_all(work, f"ring step {number} of {len(plan.steps)}", exchange.group)
        pending = None
        # What has left need not be held any longer: from here on there are two buffers again.
        held = arriving
        del work
        exchange.count(arriving)
        if step.block is not None:
            pending = KVBlock(*unpack_kv(arriving), plan.blocks[step.block].layout)
    if pending is not None:
        yield pending


def _frames_of(shards: Shards, owner: int, hops: Ints, anchors: Bools, s: int) -> list[TokenRange]:
    """Tokens of an owner's frames that go s hops or more: the furthest first, anchors before."""
    P, (start, stop) = shards.grid.tokens_per_frame, shards.token_range(owner)
    first, last = shards.frame_range(owner)
    frames = first + np.flatnonzero(hops[first:last] >= s)
    order = np.lexsort((frames, ~anchors[frames], -hops[frames]))
    return [(max(start, f * P), min(stop, (f + 1) * P)) for f in frames[order].tolist()]
