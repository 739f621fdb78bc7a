"""Only the needed frames travel: one uneven all-to-all that brings each rank what it attends.

The rows that a rank receives are exactly the tokens of other ranks in frames that some query of
its own attends, the least that any exact exchange can move to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
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
from lvsa.layout import frame_runs, pack
from lvsa.pattern import Bools, Ints, Pattern
from lvsa.shards import Shards, TokenRange


@dataclass(frozen=True)
class Split:
    """One all-to-all of one rank, in tokens.

    Args:
        send: intervals of the own shard, local positions, in the order they leave.
        send_sizes: tokens to each rank.
        receive_sizes: tokens from each rank.
    """

    send: tuple[TokenRange, ...]
    send_sizes: tuple[int, ...]
    receive_sizes: tuple[int, ...]


def transfer(shards: Shards, attended: Bools, owner: int, reader: int) -> list[TokenRange]:
    """Intervals of the sequence that travel from ``owner`` to ``reader``."""
    if owner == reader:
        return []
    frames = shards.frames_needed(reader, attended)
    return frame_runs(frames, shards.grid.tokens_per_frame, shards.token_range(owner))


def _tokens(intervals: list[TokenRange]) -> int:
    return sum(stop - start for start, stop in intervals)


class Needed(Exchange):
    """One all-to-all with uneven splits, the own shard attended while it runs."""

    name = "needed"

    def __init__(
        self,
        shards: Shards,
        pattern: Pattern,
        rank: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__(shards, pattern, rank, group)
        # All ranks call the collective or none does, also those that receive nothing.
        self._travels = [bool(self.traffic(shards, m).any()) for m in pattern.attended]

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> ExchangePlan:
        ranks = range(shards.world)
        leaving = [transfer(shards, attended, rank, reader) for reader in ranks]
        arriving = [transfer(shards, attended, owner, rank) for owner in ranks]
        shift = shards.token_range(rank)[0]
        split = Split(
            send=tuple((a - shift, b - shift) for runs in leaving for a, b in runs),
            send_sizes=tuple(_tokens(runs) for runs in leaving),
            receive_sizes=tuple(_tokens(runs) for runs in arriving),
        )
        received = sum(split.receive_sizes)
        blocks = [own_block(shards, attended, rank)]
        if received:
            pieces = pack(interval for runs in arriving for interval in runs)
            blocks.append(block_plan(shards, attended, rank, pieces, received))
        return ExchangePlan(tuple(blocks), received, detail=split)

    @classmethod
    def traffic(cls, shards: Shards, attended: Bools) -> Ints:
        total = np.full(shards.grid.frames, shards.grid.tokens_per_frame)
        return np.array(
            [
                (total - shards.tokens_held(r))[shards.frames_needed(r, attended)].sum()
                for r in range(shards.world)
            ],
            dtype=np.int64,
        )

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        plan = self.plans[offset]
        split = plan.detail
        assert isinstance(split, Split)
        own, *rest = plan.blocks
        if not self._travels[offset]:
            yield KVBlock(k_BLHD, v_BLHD, own.layout)
            return
        packed = pack_kv(k_BLHD, v_BLHD)
        leaving = torch.cat([packed[a:b] for a, b in split.send] or [packed[:0]])
        arrived = packed.new_empty((sum(split.receive_sizes), *packed.shape[1:]))
        work = dist.all_to_all_single(
            arrived,
            leaving,
            output_split_sizes=list(split.receive_sizes),
            input_split_sizes=list(split.send_sizes),
            group=self.group,
            async_op=True,
        )
        del packed
        yield KVBlock(k_BLHD, v_BLHD, own.layout)
        wait(work, "all-to-all of needed frames", self.group)
        self.count(arrived)
        if rest:
            yield KVBlock(*unpack_kv(arrived), rest[0].layout)
