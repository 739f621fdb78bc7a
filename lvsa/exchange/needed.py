"""Only the needed frames travel: each rank is sent what it attends, and nothing else.

The tokens that a rank receives are exactly those of other ranks in frames that some query of its
own attends, the least that any exact exchange can move to it. Frames that everybody attends are
packed once and sent to each rank from there. They stand first in what arrives too, so that the
window of a frame, less these, is one range.

Where every rank attends every frame, as in dense attention, there is nothing to choose: the shards
go round, as in the ring exchange, so that no rank holds all of them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.comm import wait_all
from lvsa.exchange.base import (
    Exchange,
    ExchangePlan,
    KVBlock,
    Phase,
    Slice,
    block_plan,
    other_pairs,
    own_block,
    pack_rows,
    slices_of,
    tokens_of,
    unpack_kv,
)
from lvsa.exchange.ring import Ring, RingPlan, go_round
from lvsa.layout import frame_runs, pack
from lvsa.pattern import Bools, Pattern
from lvsa.shards import Shards, TokenRange

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NeededPlan(ExchangePlan):
    """What one rank packs and sends, and where what it receives is to stand.

    Args:
        rows: ``[n]`` int64, tokens of the own shard as they are packed: first those of the
            anchors, which leave for every rank, then for one rank after the other what else it
            attends.
        sends: slices of the packed tokens.
        receives: slices of the buffer of the second block.
        ring: the turns of the ring that takes the place of these where every rank attends every
            frame.
    """

    rows: Tensor
    sends: tuple[Slice, ...] = ()
    receives: tuple[Slice, ...] = ()
    ring: RingPlan | None = None

    def to(self, device: torch.device | str) -> "NeededPlan":
        if self.ring is not None:
            ring = self.ring.to(device)
            return replace(self, blocks=ring.blocks, ring=ring)
        return replace(super().to(device), rows=self.rows.to(device))


class Needed(Exchange[NeededPlan]):
    """Sends and receives of what is attended, the own shard attended while they run."""

    name = "needed"

    def __init__(
        self,
        shards: Shards,
        pattern: Pattern,
        rank: int,
        group: dist.ProcessGroup | None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shards, pattern, rank, group, device)
        if shards.world > 1 and rank == 0 and pattern.is_dense:
            logger.info(
                "[LVSA] every frame attends every frame: exchange 'needed' passes them all "
                "round, as 'ring' does"
            )

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> NeededPlan:
        others = [r for r in range(shards.world) if r != rank]
        own, nothing = own_block(shards, attended, rank), torch.empty(0, dtype=torch.int64)
        if not others:
            return NeededPlan((own,), 0, nothing)
        needed = {r: shards.frames_needed(r, attended) for r in (rank, *others)}
        if all(frames.all() for frames in needed.values()):
            ring = Ring.plan(shards, attended, rank)
            return NeededPlan(ring.blocks, ring.received_tokens, nothing, ring=ring)
        anchors: Bools = np.asarray(attended.all(0))

        def runs(owner: int, frames: Bools) -> list[TokenRange]:
            P = shards.grid.tokens_per_frame
            return frame_runs(frames, P, shards.token_range(owner))

        # At most two transfers from one rank to another: anchors, then the rest.
        leaving = [runs(rank, anchors), *(runs(rank, needed[r] & ~anchors) for r in others)]
        of_all, *of_each = slices_of(leaving, [rank, *others])
        sends = [of_all._replace(peer=r) for r in others] + of_each
        arriving = [
            runs(r, frames) for frames in (anchors, needed[rank] & ~anchors) for r in others
        ]
        receives = slices_of(arriving, others * 2)
        blocks, received = [own], receives[-1].stop
        if received:
            pieces = pack(chain.from_iterable(arriving))
            blocks.append(block_plan(shards, attended, rank, pieces, received))
        return NeededPlan(
            tuple(blocks),
            received,
            rows=tokens_of(chain.from_iterable(leaving), shards.token_range(rank)[0]),
            sends=tuple(part for part in sends if part.tokens),
            receives=tuple(part for part in receives if part.tokens),
        )

    @classmethod
    def phases(cls, shards: Shards, attended: Bools) -> list[Phase]:
        needed = np.stack([shards.frames_needed(r, attended) for r in range(shards.world)])
        if needed.all():
            return Ring.phases(shards, attended)
        tokens = shards.held @ needed.T
        np.fill_diagonal(tokens, 0)
        sender, receiver = tokens.nonzero()
        if not len(sender):
            return []
        travel = tokens[sender, receiver]
        return [Phase(sender, receiver, travel, other_pairs(shards, attended))]

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        plan = self.plans[offset]
        if plan.ring is not None:
            yield from go_round(self, plan.ring, k_BLHD, v_BLHD)
            return
        own, *rest = plan.blocks
        if not plan.sends and not plan.receives:
            yield KVBlock(k_BLHD, v_BLHD, own.layout)
            return
        leaving = pack_rows(k_BLHD, v_BLHD, plan.rows)
        arrived = leaving.new_empty((plan.received_tokens, *leaving.shape[1:]))
        work = self.start_transfers(leaving, plan.sends, arrived, plan.receives)
        yield KVBlock(k_BLHD, v_BLHD, own.layout)
        wait_all(work, "exchange of needed frames", self.group)
        # What has left need not be held while what arrived is attended.
        del leaving, work
        self.count(arrived)
        if rest:
            yield KVBlock(*unpack_kv(arrived), rest[0].layout)
