"""All keys and values to every rank: the plainest exchange, and the yardstick of the others."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from lvsa.comm import all_gather, wait
from lvsa.exchange.base import (
    Exchange,
    ExchangePlan,
    KVBlock,
    Phase,
    block_plan,
    other_pairs,
    own_block,
    pack_kv,
    unpack_kv,
)
from lvsa.layout import Piece
from lvsa.pattern import Bools
from lvsa.shards import Shards


class AllGather(Exchange[ExchangePlan]):
    """One all-gather of every shard; the own shard is attended while it runs."""

    name = "all_gather"

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> ExchangePlan:
        start, stop = shards.token_range(rank)
        S = shards.grid.tokens
        # The gathered buffer is the whole sequence; the own shard in it was attended before.
        others = [Piece(a, b, a) for a, b in ((0, start), (stop, S)) if a < b]
        blocks = [own_block(shards, attended, rank)]
        if others:
            blocks.append(block_plan(shards, attended, rank, others, S))
        return ExchangePlan(tuple(blocks), received_tokens=S - (stop - start))

    @classmethod
    def phases(cls, shards: Shards, attended: Bools) -> list[Phase]:
        N = shards.world
        if N == 1:
            return []
        # As NCCL and gloo do it: every shard goes all the way round, from neighbor to neighbor.
        ranks = np.arange(N)
        tokens = np.full(N, shards.grid.tokens - shards.local_tokens)
        return [Phase(ranks, (ranks + 1) % N, tokens, other_pairs(shards, attended), hops=N - 1)]

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        own, *rest = self.plans[offset].blocks
        if not rest:
            yield KVBlock(k_BLHD, v_BLHD, own.layout)
            return
        mine = pack_kv(k_BLHD, v_BLHD)
        everything = mine.new_empty((self.shards.grid.tokens, *mine.shape[1:]))
        work = all_gather(everything, mine, self.group, async_op=True)
        yield KVBlock(k_BLHD, v_BLHD, own.layout)
        wait(work, "all-gather of keys and values", self.group)
        self.count(everything[mine.shape[0] :])
        # What has left need not be held while what arrived is attended.
        del mine, work
        yield KVBlock(*unpack_kv(everything), rest[0].layout)
