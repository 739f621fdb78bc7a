"""What a call allocates for keys and values, measured on real ranks."""

import time

import pytest
import torch
from torch import distributed as dist

from lvsa.attention import LVSAttention
from lvsa.exchange import EXCHANGES
from lvsa.exchange.base import token_bytes
from lvsa.pattern import dense
from lvsa.shards import FrameGrid
from tests.support.engines import long_sparse, random_qkv
from tests.support.memory import KeyValueMemory
from tests.support.ranks import run_ranks


def measured_memory(rank, world):
    """Largest storage and peak of what a call allocates for K/V, as parts of the whole K/V."""
    found = {}
    for exchange in EXCHANGES:
        engine = long_sparse(world, exchange)
        q, k, v = random_qkv(engine.local_tokens, rank)
        with KeyValueMemory(k, v) as memory:
            engine(q, k, v)
        everything = engine.grid.tokens * token_bytes(1, 2, 8, torch.float32)
        assert memory.peak > 0
        # The process group's own thread lets go of a finished operation's tensors a moment later.
        until = time.monotonic() + 10
        while memory.live and time.monotonic() < until:
            time.sleep(0.01)
        assert memory.live == 0, "nothing outlives the call"
        found[exchange] = memory.largest / everything, memory.peak / everything
    return found


@pytest.fixture(scope="module")
def memory_of_ranks():
    return run_ranks(4, measured_memory)


@pytest.mark.parametrize("exchange", ["ring", "needed"])
def test_no_rank_ever_holds_all_keys_and_values(exchange, memory_of_ranks):
    """Not even all its buffers and its own quarter together come to the whole."""
    for found in memory_of_ranks:
        largest, peak = found[exchange]
        assert largest <= 0.25
        assert peak + 0.25 < 1


def test_needed_packs_only_what_leaves(memory_of_ranks):
    """A rank sends few of its frames; a packed copy of its whole shard would be a quarter."""
    for found in memory_of_ranks:
        assert found["needed"][0] < 0.25


def test_all_gather_does_hold_them(memory_of_ranks):
    """The measurement is able to fail."""
    for found in memory_of_ranks:
        largest, peak = found["all_gather"]
        assert largest == 1
        assert peak > 1


def dense_memory(rank, world):
    """Peak of the copies of K/V in a dense call, as parts of the whole K/V, and bytes received."""
    grid = FrameGrid(32, 1, 4)
    found = {}
    for exchange in EXCHANGES:
        engine = LVSAttention(dense(32), grid, group=dist.group.WORLD, exchange=exchange)
        q, k, v = random_qkv(engine.local_tokens, rank)
        with KeyValueMemory(k, v) as memory:
            engine(q, k, v)
        whole = grid.tokens * token_bytes(1, 2, 8, torch.float32)
        found[exchange] = memory.peak / whole, engine.received.kv_bytes / whole
    return found


def test_dense_attention_by_needed_holds_few_shards_at_a_time():
    """Rows chosen for each of three ranks would be three shards, and what arrives three more."""
    for found in run_ranks(4, dense_memory):
        assert found["needed"] == found["ring"]
        assert found["needed"][0] <= 0.75
        assert found["all_gather"][0] >= 1
        assert {received for _, received in found.values()} == {0.75}
