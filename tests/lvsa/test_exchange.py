"""Exchanges: by table, the same pairs for every world size; at run time, what the tables say."""

import time
import weakref
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.backends.sdpa import SDPABackend
from lvsa.errors import LVSAError
from lvsa.exchange import EXCHANGES, Local, get_exchange
from lvsa.exchange.base import pack_kv, received_tokens, token_bytes, unpack_kv
from lvsa.exchange.ring import Ring, hops
from lvsa.keyframes import even, published
from lvsa.pattern import Pattern
from lvsa.shards import FrameGrid, Shards
from tests.lvsa.test_pattern import as_sets, oracle_sets, patterns
from tests.support.oracle import token_mask
from tests.support.ranks import run_ranks

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = sorted(EXCHANGES)


@st.composite
def cases(draw, least_ranks=1, most_ranks=16):
    """A pattern, one of its offsets, and a grid that divides among the ranks."""
    pattern = draw(patterns(most_frames=14))
    world = draw(st.integers(least_ranks, most_ranks))
    step = world // np.gcd(pattern.frames, world)
    P = int(step) * draw(st.integers(1, max(1, 6 // int(step))))
    grid = FrameGrid(pattern.frames, 1, P)
    return pattern, draw(st.integers(0, pattern.n_offsets - 1)), Shards(grid, world)


def exchanges_of(shards):
    return [*EXCHANGES.values(), *([Local] if shards.world == 1 else [])]


def pairs_of(plan, shards, rank):
    """[L, S] how often the plan's blocks attend each (local query, key of the sequence)."""
    count = np.zeros((shards.local_tokens, shards.grid.tokens), dtype=int)
    for block in plan.blocks:
        token = np.full(block.tokens, -1)
        for piece in block.pieces:
            span = piece.stop - piece.start
            token[piece.position : piece.position + span] = np.arange(piece.start, piece.stop)
        for tile in block.layout.tiles:
            for start, stop in tile.keys:
                keys = token[start:stop]
                assert len(keys) == stop - start, "the range ends beyond the buffer"
                assert (keys >= 0).all(), "a range of the buffer that holds nothing is attended"
                count[tile.start : tile.stop, keys] += 1
    return count


def mask_of(pattern, offset, P):
    """[S, S] from the definition, in loops."""
    return token_mask(oracle_sets(pattern, offset), P).numpy()


@PROPERTY
@given(cases())
def test_every_attended_pair_once_for_every_world_size_and_exchange(case):
    pattern, offset, shards = case
    expected = mask_of(pattern, offset, shards.grid.tokens_per_frame).astype(int)
    for exchange in exchanges_of(shards):
        plans = [
            exchange.plan(shards, pattern.attended[offset], rank) for rank in range(shards.world)
        ]
        got = np.concatenate([pairs_of(plan, shards, r) for r, plan in enumerate(plans)])
        assert np.array_equal(got, expected), exchange.name
        assert sum(plan.pairs for plan in plans) == expected.sum()


@pytest.mark.parametrize("name", NAMES)
def test_frames_attended_are_the_same_on_1_to_16_ranks(name):
    """The promise in one table: 21 attended frames at one rank are 21 at sixteen."""
    pattern = published(81, horizon=21, rotate=True)
    expected = {
        (offset, f): attended
        for offset in (0, 4)
        for f, attended in enumerate(as_sets(pattern.attended[offset]))
    }
    for world in range(1, 17):
        P = world // int(np.gcd(81, world))
        shards = Shards(FrameGrid(81, 1, P), world)
        for offset in (0, 4):
            plans = [
                EXCHANGES[name].plan(shards, pattern.attended[offset], rank)
                for rank in range(world)
            ]
            pairs = np.concatenate([pairs_of(plan, shards, r) for r, plan in enumerate(plans)])
            frame_pairs = pairs.reshape(81, P, 81, P)
            assert (frame_pairs == frame_pairs[:, :1, :, :1]).all(), "frames are whole or absent"
            for f, attended in enumerate(as_sets(frame_pairs[:, 0, :, 0])):
                assert attended == expected[offset, f]


@PROPERTY
@given(cases())
def test_traffic_is_what_the_plans_receive(case):
    pattern, offset, shards = case
    matrix = pattern.attended[offset]
    for exchange in exchanges_of(shards):
        planned = [exchange.plan(shards, matrix, r).received_tokens for r in range(shards.world)]
        assert exchange.traffic(shards, matrix).tolist() == planned
        table = received_tokens(exchange, shards, pattern)
        assert table.shape == (pattern.n_offsets, shards.world)
        assert table[offset].tolist() == planned


@PROPERTY
@given(cases())
def test_needed_moves_the_least_that_is_exact(case):
    pattern, offset, shards = case
    mask = mask_of(pattern, offset, shards.grid.tokens_per_frame)
    for rank, received in enumerate(EXCHANGES["needed"].traffic(shards, pattern.attended[offset])):
        start, stop = shards.token_range(rank)
        attended = mask[start:stop].any(0)
        attended[start:stop] = False
        assert received == attended.sum()


@PROPERTY
@given(cases())
def test_needed_sends_what_the_others_expect(case):
    pattern, offset, shards = case
    ranks = range(shards.world)
    plans = [EXCHANGES["needed"].plan(shards, pattern.attended[offset], r) for r in ranks]
    for owner in ranks:
        split = plans[owner].detail
        first = shards.token_range(owner)[0]
        leaving = [first + t for a, b in split.send for t in range(a, b)]
        for reader in ranks:
            size = split.send_sizes[reader]
            assert size == plans[reader].detail.receive_sizes[owner]
            sent, leaving = leaving[:size], leaving[size:]
            arrived = [
                t
                for block in plans[reader].blocks[1:]
                for piece in block.pieces
                for t in range(piece.start, piece.stop)
                if first <= t < first + shards.local_tokens
            ]
            assert sent == arrived
        assert not leaving


@PROPERTY
@given(cases())
def test_ring_moves_a_shard_only_towards_its_readers(case):
    pattern, offset, shards = case
    N, matrix = shards.world, pattern.attended[offset]
    mask = mask_of(pattern, offset, shards.grid.tokens_per_frame)
    plans = [Ring.plan(shards, matrix, rank) for rank in range(N)]
    steps = len(plans[0].detail)
    for owner in range(N):
        keys = slice(*shards.token_range(owner))
        readers = [
            r for r in range(N) if r != owner and mask[slice(*shards.token_range(r)), keys].any()
        ]
        last = max([(reader - owner) % N for reader in readers], default=0)
        assert hops(shards, matrix)[owner] == last
        for s in range(1, steps + 1):
            reader, sender = (owner + s) % N, (owner + s - 1) % N
            assert plans[reader].detail[s - 1].receives == (s <= last)
            assert plans[sender].detail[s - 1].sends == (s <= last)
            assert (plans[reader].detail[s - 1].block is not None) == (reader in readers)


@PROPERTY
@given(cases())
def test_ring_and_needed_never_move_more_than_all_gather(case):
    pattern, _, shards = case
    needed, ring, everything = (
        received_tokens(EXCHANGES[name], shards, pattern)
        for name in ("needed", "ring", "all_gather")
    )
    assert (needed <= ring).all()
    assert (ring <= everything).all()


def test_known_bytes_of_a_long_video():
    """Wan 1.3B, 81 latent frames of 1560 tokens, bfloat16: MB per rank and layer."""
    token = token_bytes(batch=1, heads=12, head_dim=128, dtype=torch.bfloat16)
    pattern = published(81, horizon=21)
    grid = FrameGrid(81, 30, 52)
    for world, gathered, needed in ((2, 388, 101), (4, 582, 151), (8, 679, 176)):
        shards = Shards(grid, world)
        mean = {
            name: received_tokens(EXCHANGES[name], shards, pattern).mean() * token / 1e6
            for name in ("all_gather", "needed")
        }
        assert round(mean["all_gather"]) == gathered
        assert round(mean["needed"]) == needed


def test_unknown_exchange_lists_the_known_ones():
    with pytest.raises(LVSAError, match="unknown exchange 'mesh'; known: all_gather, ring, needed"):
        get_exchange("mesh")


def test_packed_keys_and_values_are_views_of_one_buffer():
    k, v = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    packed = pack_kv(k, v)
    assert packed.is_contiguous()
    assert packed.nbytes == 5 * token_bytes(2, 3, 4, torch.float32)
    for got, expected in zip(unpack_kv(packed), (k, v), strict=True):
        assert torch.equal(got, expected)
        assert got.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


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
@given(cases(least_ranks=2, most_ranks=9))
def test_ring_blocks_hold_their_shards_while_they_are_attended(case):
    check_ring_stream(*case)


def test_ring_with_gaps_between_its_arrivals():
    """Shards 0, 1 and 3 of 6 go all the way round, the others nowhere: a turn without arrival
    stands between two with."""
    pattern = Pattern(
        frames=6,
        window=0,
        n_first=2,
        interval=6,
        expand_window=False,
        condition_frames=(3,),
    )
    shards = Shards(FrameGrid(6, 1, 2), 6)
    assert [step.receives for step in Ring.plan(shards, pattern.attended[0], 5).detail] == [
        False,
        True,
        False,
        True,
        True,
    ]
    check_ring_stream(pattern, 0, shards)


# Measured on real ranks.


def long_sparse(world, exchange, rotate=False, P=4):
    """64 latent frames of P tokens of which a frame attends 5; small tiles share no copies."""
    pattern = published(64, interval=32, window=1, n_first=1, rotate=rotate)
    return LVSAttention(
        pattern,
        FrameGrid(64, 1, P),
        group=dist.group.WORLD if world > 1 else None,
        exchange=exchange,
        backend=SDPABackend(gather_bytes=1),
    )


def random_shard(tokens, seed, B=1, H=2, D=8):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, tokens, H, D, generator=generator) for _ in range(3)]


class KeyValueMemory(TorchDispatchMode):
    """Bytes of storages that hold keys or values, or copies of them, as they come and go.

    What an operation makes out of keys and values is counted as such, arrival buffers shaped like
    them too; what an attention kernel makes is not.
    """

    def __init__(self, *inputs):
        super().__init__()
        self.inputs = [x.untyped_storage() for x in inputs]
        self.of_keys = {storage._cdata for storage in self.inputs}
        self.live = self.peak = self.largest = 0
        self.watched = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        kernel = "attention" in function.name()
        if not kernel and any(x.untyped_storage()._cdata in self.of_keys for x in given):
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor):
                    self.watch(x.untyped_storage())
        return out

    def watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.of_keys:
            return
        self.of_keys.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, size)
        self.watched[key] = weakref.ref(storage, lambda _: self.forget(key, size))

    def forget(self, key, size):
        self.of_keys.discard(key)
        del self.watched[key]
        self.live -= size


def measured_memory(rank, world):
    """Largest storage and peak of what a call allocates for K/V, as parts of the whole K/V."""
    found = {}
    for exchange in NAMES:
        engine = long_sparse(world, exchange)
        q, k, v = random_shard(engine.local_tokens, rank)
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


def test_all_gather_does_hold_them(memory_of_ranks):
    """The measurement is able to fail."""
    for found in memory_of_ranks:
        largest, peak = found["all_gather"]
        assert largest == 1
        assert peak > 1


def counted_bytes(rank, world, exchange, dtype):
    engine = long_sparse(world, exchange, rotate=True, P=3)
    B, H, D, X = 2, 2, 8, 5
    text = [x.to(dtype) for x in random_shard(X, 99, B)]
    mask = torch.ones(B, X, dtype=torch.bool)
    mask[0, 3:] = False
    token = token_bytes(B, H, D, dtype)
    table = received_tokens(EXCHANGES[exchange], engine.shards, engine.pattern)
    for step in (0, 1, 5, 31, 32):
        engine.step = step
        before = engine.received.kv_bytes
        q, k, v = (x.to(dtype) for x in random_shard(engine.local_tokens, rank, B))
        engine(q, k, v, TextTokens(*text, valid=valid_positions(mask)))
        assert engine.received.kv_bytes - before == table[step % 32, rank] * token
    assert engine.received.calls == 5
    # Outputs and log-sum-exps travel in the precision of the latter.
    assert engine.received.text_bytes == 5 * (world - 1) * B * X * H * (D + 1) * 4


def all_counted_bytes(rank, world):
    for exchange in NAMES:
        for dtype in (torch.float32, torch.bfloat16):
            counted_bytes(rank, world, exchange, dtype)


def test_bytes_counted_are_bytes_planned():
    run_ranks(3, all_counted_bytes)


class Forbidden:
    """Stands in for numpy: any use of it is an error."""

    def __getattr__(self, name):
        raise AssertionError(f"np.{name} was called in the hot path")


class NoTables(TorchDispatchMode):
    """Forbids what reads a device, or makes index tables on the host."""

    names = ("_local_scalar_dense", "nonzero", "arange", "masked_select", "_to_copy", "item")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        assert name not in self.names, f"{name} was called in the hot path"
        return function(*args, **(kwargs or {}))


def call_at_all_offsets(engine, rank, text=None):
    outs = []
    for step in range(engine.pattern.n_offsets + 2):
        engine.step = step
        q, k, v = random_shard(engine.local_tokens, rank)
        outs.append(engine(q, k, v, text)[0])
    return outs


def hot_path(rank, world, exchange):
    engine = long_sparse(world, exchange, rotate=True)
    text = TextTokens(*random_shard(5, 99), valid=valid_positions(torch.ones(1, 5)))

    def forbidden(*args, **kwargs):
        raise AssertionError("a plan or a layout was made in the hot path")

    with pytest.MonkeyPatch.context() as patch, ExitStack() as modes:
        for cls in (*EXCHANGES.values(), Local):
            patch.setattr(cls, "plan", forbidden)
            patch.setattr(cls, "traffic", forbidden)
        for module in (
            "layout",
            "pattern",
            "keyframes",
            "shards",
            "exchange.base",
            "exchange.ring",
            "exchange.needed",
            "exchange.all_gather",
            "exchange.local",
        ):
            patch.setattr(f"lvsa.{module}.np", Forbidden())
        for module in ("layout", "exchange.base"):
            patch.setattr(f"lvsa.{module}.build_layout", forbidden)
        first = call_at_all_offsets(engine, rank, text)
        # What kernels derive from a layout they derive once, the first time that they meet it.
        modes.enter_context(NoTables())
        second = call_at_all_offsets(engine, rank, text)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) == engine.pattern.n_offsets + 2


def all_hot_paths(rank, world):
    for exchange in NAMES:
        hot_path(rank, world, exchange)


def test_nothing_is_planned_in_the_hot_path_of_one_process():
    hot_path(0, 1, "needed")


def test_nothing_is_planned_in_the_hot_path_of_ranks():
    run_ranks(2, all_hot_paths)


def test_the_guards_of_the_hot_path_can_fail(monkeypatch):
    with NoTables(), pytest.raises(AssertionError, match="arange was called in the hot path"):
        torch.arange(3)
    with NoTables(), pytest.raises(AssertionError, match="_local_scalar_dense was called"):
        torch.ones(1).item()
    monkeypatch.setattr("lvsa.layout.np", Forbidden())
    with pytest.raises(AssertionError, match=r"np\.\w+ was called in the hot path"):
        long_sparse(1, "needed")
