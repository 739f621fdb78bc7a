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


# The ring's buffers: arrivals are delivered the moment they are posted, which is the earliest that
# a network could, so that a buffer reused too soon shows every time.


class PromptRing(Ring):
    """The ring of one rank whose neighbours are played by the tables of the sequence."""

    def __init__(self, shards, pattern, rank, packed_S):
        super().__init__(shards, pattern, rank, None)
        self.packed_S = packed_S
        self.turn = 0

    def shard(self, owner):
        return self.packed_S[slice(*self.shards.token_range(owner % self.shards.world))]

    def _start(self, leaving, arriving):
        self.turn += 1
        if arriving is not None:
            assert arriving is not leaving, "it would be overwritten while it leaves"
            arriving.copy_(self.shard(self.rank - self.turn))
        if leaving is not None:
            assert torch.equal(leaving, self.shard(self.rank - self.turn + 1))
        return []


def check_ring_stream(pattern, offset, shards):
    S = shards.grid.tokens
    k = torch.arange(S, dtype=torch.float64).reshape(1, S, 1, 1)
    packed = pack_kv(k, -k)
    for rank in range(shards.world):
        ring = PromptRing(shards, pattern, rank, packed)
        local = slice(*shards.token_range(rank))
        blocks = ring.stream(k[:, local], -k[:, local], offset)
        for block, plan in zip(blocks, ring.plans[offset].blocks, strict=True):
            assert block.layout is plan.layout
            for piece in plan.pieces:
                span = slice(piece.position, piece.position + piece.stop - piece.start)
                assert torch.equal(block.k_BCHD[:, span], k[:, piece.start : piece.stop])
                assert torch.equal(block.v_BCHD[:, span], -k[:, piece.start : piece.stop])
        expected = ring.plans[offset].received_tokens * 2 * k.element_size()
        assert ring.received_bytes == expected


@PROPERTY
@given(cuts(least_ranks=2, most_ranks=9))
def test_ring_blocks_hold_their_shards_while_they_are_attended(cut):
    check_ring_stream(cut.pattern, cut.offset, cut.shards)


def test_ring_with_gaps_between_its_arrivals():
    """Shards 0, 1 and 3 of 6 go all the way round, the others nowhere: a turn without arrival
    stands between two with."""
    matrix = torch.eye(6, dtype=torch.bool)
    matrix[:, [0, 1, 3]] = True
    pattern = Pattern.of(matrix, fixed_anchors=(0, 1, 3))
    shards = Shards(FrameGrid(6, 1, 2), 6)
    steps = Ring.plan(shards, pattern.attended[0], 5).steps
    assert [step.receives for step in steps] == [False, True, False, True, True]
    check_ring_stream(pattern, 0, shards)


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
    # Outputs and log-sum-exps travel in the precision of the latter.
    assert engine.received.text_bytes == len(STEPS) * (world - 1) * B * X * H * (D + 1) * 4
    if world > 1:
        assert engine.received.kv_bytes > 0
    engine(q, k, v)
    assert engine.received.calls == len(STEPS) + 1
    assert engine.received.text_bytes == len(STEPS) * (world - 1) * B * X * H * (D + 1) * 4


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
