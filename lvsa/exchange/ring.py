"""Shards go round by point-to-point; nothing moves or is computed that nobody attends.

At step s rank r holds the shard of rank r − s. It passes the shard on only while some rank further
along attends a frame of it, and computes on it only if its own queries do. (Ring attention: Liu
et al., arXiv 2310.01889.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch import distributed as dist

from lvsa.comm import wait
from lvsa.exchange.base import (
    Exchange,
    ExchangePlan,
    KVBlock,
    block_plan,
    own_block,
    pack_kv,
    unpack_kv,
)
from lvsa.layout import Piece
from lvsa.pattern import Bools, Ints
from lvsa.shards import Shards


@dataclass(frozen=True)
class RingStep:
    """A turn of the ring.

    Args:
        sends: whether the shard at hand goes on to the next rank.
        receives: whether another shard arrives.
        block: number of the plan's block that is computed on the arrival; None for none.
    """

    sends: bool
    receives: bool
    block: int | None


@dataclass(frozen=True)
class RingPlan(ExchangePlan):
    """The turns of one rank."""

    steps: tuple[RingStep, ...]


def hops(shards: Shards, attended: Bools) -> Ints:
    """``[N]``: how far each shard travels, to the last rank along the ring that attends it."""
    N = shards.world
    far = np.zeros(N, dtype=np.int64)
    held = np.stack([shards.tokens_held(owner) > 0 for owner in range(N)])
    for reader in range(N):
        frames = shards.frames_needed(reader, attended)
        for owner in np.flatnonzero((held & frames).any(1)).tolist():
            far[owner] = max(far[owner], (reader - owner) % N)
    return far


class Ring(Exchange[RingPlan]):
    """Shards passed along a ring, each only as far as somebody attends it."""

    name = "ring"

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> RingPlan:
        N, L = shards.world, shards.local_tokens
        far = hops(shards, attended)
        steps, blocks = [], [own_block(shards, attended, rank)]
        for s in range(1, int(far.max(initial=0)) + 1):
            leaving, arriving = (rank - s + 1) % N, (rank - s) % N
            block = None
            if far[arriving] >= s:
                start, stop = shards.token_range(arriving)
                candidate = block_plan(shards, attended, rank, [Piece(start, stop, 0)], L)
                if candidate.layout.tiles:
                    block = len(blocks)
                    blocks.append(candidate)
            steps.append(RingStep(bool(far[leaving] >= s), bool(far[arriving] >= s), block))
        received = L * sum(step.receives for step in steps)
        return RingPlan(tuple(blocks), received, tuple(steps))

    @classmethod
    def received_tokens(cls, shards: Shards, attended: Bools) -> Ints:
        N = shards.world
        far = hops(shards, attended)
        arrivals = [sum(far[(r - s) % N] >= s for s in range(1, N)) for r in range(N)]
        return shards.local_tokens * np.array(arrivals, dtype=np.int64)

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        plan = self.plans[offset]
        steps = plan.steps
        ready = KVBlock(k_BLHD, v_BLHD, plan.blocks[0].layout)
        held = pack_kv(k_BLHD, v_BLHD) if steps else None
        # Two buffers in turn: one is attended and sent on while the other fills. A buffer is spare
        # once the next arrival has taken its place, never while it is held.
        spare: list[Tensor] = []
        pending: KVBlock | None = ready
        for number, step in enumerate(steps, start=1):
            assert held is not None
            arriving = None
            if step.receives:
                arriving = spare.pop() if spare else held.new_empty(held.shape)
            work = self._start(held if step.sends else None, arriving)
            if pending is not None:
                yield pending
            for item in work:
                wait(item, f"ring step {number} of {len(steps)}", self.group)
            pending = None
            if arriving is not None:
                spare.append(held)
                held = arriving
                self.count(arriving)
                if step.block is not None:
                    pending = KVBlock(*unpack_kv(arriving), plan.blocks[step.block].layout)
        if pending is not None:
            yield pending

    def _start(self, leaving: Tensor | None, arriving: Tensor | None) -> list[dist.Work]:
        """Posts this turn's send to the next rank and receive from the previous one."""
        N = self.shards.world
        operations = []
        if leaving is not None:
            to = (self.rank + 1) % N
            operations.append(dist.P2POp(dist.isend, leaving, group=self.group, group_peer=to))
        if arriving is not None:
            source = (self.rank - 1) % N
            operations.append(dist.P2POp(dist.irecv, arriving, group=self.group, group_peer=source))
        return dist.batch_isend_irecv(operations) if operations else []
