"""Only the needed frames travel: one uneven all-to-all that brings each rank what it attends.

The rows that a rank receives are exactly the tokens of other ranks in frames that some query of
its own attends, the least that any exact exchange can move to it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

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
    pack_rows,
    unpack_kv,
)
from lvsa.layout import frame_runs, pack
from lvsa.pattern import Bools, Ints
from lvsa.shards import Shards, TokenRange


@dataclass(frozen=True)
class NeededPlan(ExchangePlan):
    """An all-to-all of one rank, in tokens.

    Args:
        rows: ``[n]`` int64, tokens of the own shard in the order in which they leave; one that
            several ranks attend leaves for each of them.
        send_sizes: tokens to each rank.
        receive_sizes: tokens from each rank.
        travels: whether any rank receives anything: all of them call the collective, or none.
    """

    rows: Tensor
    send_sizes: list[int]
    receive_sizes: list[int]
    travels: bool

    def to(self, device: torch.device | str) -> "NeededPlan":
        return replace(super().to(device), rows=self.rows.to(device))


def transfer(shards: Shards, attended: Bools, owner: int, reader: int) -> list[TokenRange]:
    """Ranges of the sequence that travel from ``owner`` to ``reader``."""
    if owner == reader:
        return []
    frames = shards.frames_needed(reader, attended)
    return frame_runs(frames, shards.grid.tokens_per_frame, shards.token_range(owner))


def _tokens(ranges: Iterable[TokenRange]) -> int:
    return sum(stop - start for start, stop in ranges)


class Needed(Exchange[NeededPlan]):
    """An all-to-all with uneven splits, the own shard attended while it runs."""

    name = "needed"

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> NeededPlan:
        ranks = range(shards.world)
        leaving = [transfer(shards, attended, rank, reader) for reader in ranks]
        arriving = [transfer(shards, attended, owner, rank) for owner in ranks]
        shift = shards.token_range(rank)[0]
        rows = [torch.arange(a - shift, b - shift) for runs in leaving for a, b in runs]
        received = _tokens(run for runs in arriving for run in runs)
        blocks = [own_block(shards, attended, rank)]
        if received:
            pieces = pack(token_range for runs in arriving for token_range in runs)
            blocks.append(block_plan(shards, attended, rank, pieces, received))
        return NeededPlan(
            tuple(blocks),
            received,
            rows=torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64),
            send_sizes=[_tokens(runs) for runs in leaving],
            receive_sizes=[_tokens(runs) for runs in arriving],
            travels=bool(cls.received_tokens(shards, attended).any()),
        )

    @classmethod
    def received_tokens(cls, shards: Shards, attended: Bools) -> Ints:
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
        own, *rest = plan.blocks
        if not plan.travels:
            yield KVBlock(k_BLHD, v_BLHD, own.layout)
            return
        leaving = pack_rows(k_BLHD, v_BLHD, plan.rows)
        arrived = leaving.new_empty((plan.received_tokens, *leaving.shape[1:]))
        work = dist.all_to_all_single(
            arrived,
            leaving,
            output_split_sizes=plan.receive_sizes,
            input_split_sizes=plan.send_sizes,
            group=self.group,
            async_op=True,
        )
        yield KVBlock(k_BLHD, v_BLHD, own.layout)
        wait(work, "all-to-all of needed frames", self.group)
        # What has left need not be held while what arrived is attended.
        del leaving, work
        self.count(arrived)
        if rest:
            yield KVBlock(*unpack_kv(arrived), rest[0].layout)
