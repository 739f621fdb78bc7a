"""Exchanges at run time: what is in the buffers while they are attended, and what was received."""

import pytest
import torch
from hypothesis import given, settings
from torch import distributed as dist

from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.exchange import EXCHANGES
from lvsa.exchange.base import pack_kv, pack_rows, token_bytes, unpack_kv
from lvsa.exchange.ring import Ring
from lvsa.keyframes import even, published
from lvsa.pattern import Pattern
from lvsa.shards import FrameGrid, Shards
from tests.support.cuts import cuts
from tests.support.engines import long_sparse, random_qkv
from tests.support.patterns import as_sets
from tests.support.ranks import run_ranks
from tests.support.transfers import deliver

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = sorted(EXCHANGES)


def same_storage(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_packed_keys_and_values_are_views_of_one_buffer():
    k, v = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    packed = pack_kv(k, v)
    assert packed.is_contiguous()
    assert packed.nbytes == 5 * token_bytes(2, 3, 4, torch.float32)
    for got, expected in zip(unpack_kv(packed), (k, v), strict=True):
        assert torch.equal(got, expected)
        assert same_storage(got, packed)


@pytest.mark.parametrize("rows", [[], [3], [4, 0, 0, 2], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_rows_are_the_chosen_tokens_in_their_order(rows, dtype):
    k, v = torch.randn(2, 2, 5, 3, 4).to(dtype)
    rows = torch.tensor(rows, dtype=torch.int64)
    # As models hand them over: parts of one projection, not contiguous.
    k, v = (torch.stack([x, x], dim=2)[:, :, 0] for x in (k, v))
    packed = pack_rows(k, v, rows)
    assert packed.is_contiguous()
    assert packed.shape == (len(rows), 2, 2, 3, 4)
    assert torch.equal(packed, pack_kv(k, v)[rows])


def test_all_rows_are_the_whole_shard():
    k, v = torch.randn(2, 2, 5, 3, 4)
    assert torch.equal(pack_rows(k, v, torch.arange(5)), pack_kv(k, v))


@pytest.mark.parametrize("name", ["ring", "needed"])
def test_nothing_is_sent_where_nobody_attends_anything_of_others(name):
    """There is no process group here: any collective would be an error."""
    alone = even(4, horizon=1, window=0, n_first=0)
    assert as_sets(alone.attended[0]) == [{0}, {1}, {2}, {3}]
    k = torch.randn(1, 4, 1, 2)
    for rank in range(2):
        exchange = EXCHANGES[name](Shards(FrameGrid(4, 1, 2), 2), alone, rank, None)
        (block,) = exchange.stream(k, -k, 0)
        assert torch.equal(block.k_BCHD, k)
        assert exchange.received_bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_attends_its_own_keys_in_place(name):
    pattern = published(6, interval=3, window=1, rotate=True)
    exchange = EXCHANGES[name](Shards(FrameGrid(6, 1, 2), 1), pattern, 0, None)
    k, v = torch.randn(2, 1, 12, 1, 2)
    for offset in range(3):
        (block,) = exchange.stream(k, v, offset)
        assert block.k_BCHD is k
        assert block.v_BCHD is v
        assert block.layout is exchange.plans[offset].blocks[0].layout
        assert block.layout.covers_all_queries
    assert exchange.received_bytes == 0


# Buffers: arrivals are delivered the moment they are posted, which is the earliest that a network
# could, so that a buffer that is reused too soon shows every time.


def prompt(name, shards, pattern, offset):
    """The exchange of each rank, its neighbors played by the tables of the sequence."""
    everyone = [EXCHANGES[name](shards, pattern, rank, None) for rank in range(shards.world)]
    turns = deliver(shards, [exchange.plans[offset] for exchange in everyone])
    for exchange, of_rank in zip(everyone, turns, strict=True):
        exchange.start_transfers = Deliverer(of_rank)
    return everyone


class Deliverer:
    """Fills the buffers of one rank, turn by turn; keys are the tokens' numbers."""

    def __init__(self, turns):
        self.turns = iter(turns)

    def __call__(self, leaving, sends, arriving, receives):
        turn = next(self.turns)
        assert (sends, receives) == (turn.sends, turn.receives)
        for part in sends:
            sent = torch.as_tensor(turn.leaving[part.start : part.stop]).double()
            assert torch.equal(leaving[part.start : part.stop, 0].flatten(), sent)
        whole = torch.as_tensor(turn.arriving).double().view(-1, 1, 1, 1)
        arriving.copy_(torch.stack([whole, -whole], dim=1))
        return []


def check_stream(name, pattern, offset, shards):
    k = torch.arange(shards.grid.tokens, dtype=torch.float64).reshape(1, -1, 1, 1)
    for rank, exchange in enumerate(prompt(name, shards, pattern, offset)):
        plan, local = exchange.plans[offset], slice(*shards.token_range(rank))
        blocks = exchange.stream(k[:, local], -k[:, local], offset)
        for block, planned in zip(blocks, plan.blocks, strict=True):
            assert block.layout is planned.layout
            for start, stop, position in planned.pieces:
                span = slice(position, position + stop - start)
                assert torch.equal(block.k_BCHD[:, span], k[:, start:stop])
                assert torch.equal(block.v_BCHD[:, span], -k[:, start:stop])
        assert exchange.received_bytes == plan.received_tokens * 2 * k.element_size()


@pytest.mark.parametrize("name", ["needed", "ring"])
@PROPERTY
@given(cut=cuts(least_ranks=2, most_ranks=9))
def test_blocks_hold_their_frames_while_they_are_attended(name, cut):
    check_stream(name, cut.pattern, cut.offset, cut.shards)


def test_ring_with_gaps_between_its_arrivals():
    """A turn in which nothing arrives stands between two in which something does."""
    matrix = torch.eye(9, dtype=torch.bool)
    # Frame 3 goes one hop to the left and frame 1 three to the right: rank 4 sees the last of it.
    matrix[2, 3] = matrix[5, 4] = matrix[4, 1] = True
    pattern = Pattern.of(matrix)
    shards = Shards(FrameGrid(9, 1, 2), 9)
    of_ranks = [Ring.plan(shards, pattern.attended[0], rank).steps for rank in range(9)]
    received = [[step.tokens for step in steps] for steps in of_ranks]
    assert received[4] == [0, 0, 2] and received[5] == [2, 0, 0] and received[2] == [4, 0, 0]
    # What only passes through is not attended.
    assert [step.block for step in of_ranks[3]] == [None, None, None]
    check_stream("ring", pattern, 0, shards)


STEPS = (0, 1, 5, 31, 32)


def received(rank, world, exchange, dtype):
    """Bytes that the engine counts, against those of the tables, with text and without."""
    engine = long_sparse(world, exchange, rotate=True, P=3)
    B, H, D, X = 2, 2, 8, 5
    text = [x.to(dtype) for x in random_qkv(X, 99, B)]
    mask = torch.ones(B, X, dtype=torch.bool)
    mask[0, 3:] = False
    token = token_bytes(B, H, D, dtype)
    table = EXCHANGES[exchange].received_tokens_by_offset(engine.shards, engine.pattern)
    for step in STEPS:
        engine.step = step
        before = engine.received.kv_bytes
        q, k, v = (x.to(dtype) for x in random_qkv(engine.local_tokens, rank, B))
        engine(q, k, v, TextTokens(*text, valid=valid_positions(mask)))
        assert engine.received.kv_bytes - before == table[step % 32, rank] * token
    assert engine.received.calls == len(STEPS)
    # Of valid text alone: outputs in the dtype of the queries, log-sum-exps in float32.
    of_text = len(STEPS) * (world - 1) * int(mask.sum()) * H * (D * dtype.itemsize + 4)
    assert engine.received.text_bytes == of_text
    if world > 1:
        assert engine.received.kv_bytes > 0
    engine(q, k, v)
    assert engine.received.calls == len(STEPS) + 1
    assert engine.received.text_bytes == of_text


def received_by_all(rank, world):
    for exchange in NAMES:
        for dtype in (torch.float32, torch.bfloat16):
            received(rank, world, exchange, dtype)


@pytest.mark.parametrize("world", [1, 3])
def test_bytes_received_are_bytes_planned(world):
    run_ranks(world, received_by_all)


def another_configuration(rank, world):
    """The count goes on where the engine is made another's."""
    grids = FrameGrid(6, 1, 2), FrameGrid(8, 1, 3)
    pairs = [(published(g.frames, interval=3, window=1), g) for g in grids]
    engine = LVSAttention(*pairs[0], group=dist.group.WORLD, exchange="all_gather")
    expected = 0
    for pattern, grid in (*pairs, pairs[0]):
        engine.configure(pattern, grid)
        engine(*random_qkv(engine.local_tokens, rank))
        expected += (grid.tokens - engine.local_tokens) * token_bytes(1, 2, 8, torch.float32)
        assert engine.received.kv_bytes == expected


def test_bytes_are_counted_over_all_configurations():
    run_ranks(2, another_configuration)
