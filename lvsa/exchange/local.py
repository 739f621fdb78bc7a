"""One process: everything is here."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from lvsa.exchange.base import Exchange, ExchangePlan, KVBlock, own_block
from lvsa.pattern import Bools, Ints
from lvsa.shards import Shards


class Local(Exchange):
    """The exchange of a single rank: one block, nothing travels."""

    name = "local"

    @classmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> ExchangePlan:
        assert shards.world == 1, "more ranks than one need an exchange"
        return ExchangePlan((own_block(shards, attended, rank),), received_tokens=0)

    @classmethod
    def traffic(cls, shards: Shards, attended: Bools) -> Ints:
        return np.zeros(shards.world, dtype=np.int64)

    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        yield KVBlock(k_BLHD, v_BLHD, self.plans[offset].blocks[0].layout)
