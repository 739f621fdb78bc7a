"""The Triton kernel against dense masked attention in float64, in Triton's interpreter."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.backends import get_backend
from lvsa.backends.sdpa import SDPABackend
from lvsa.backends.triton_backend import TritonBackend
from lvsa.backends.triton_shapes import KernelShape
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.exchange import EXCHANGES
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.keyframes import published
from lvsa.layout import full_layout, layout_of
from lvsa.merge import AttentionState, merge
from lvsa.shards import FrameGrid
from lvsa.strips import cut_strips
from lvsa.tiles import Tile
from tests.support.engines import expected, long_sparse, padded_text, random_qkv
from tests.support.errors import refuses
from tests.support.hot_path import hot_path
from tests.support.kernels import TOLERANCE, check, dense, draw_qkv, draw_tensor
from tests.support.layouts import layouts
from tests.support.memory import KeyValueMemory
from tests.support.oracle import placed, relative_error
from tests.support.ranks import run_ranks

triton_kernel = pytest.importorskip("lvsa.backends.triton_kernel")
pytestmark = pytest.mark.skipif(
    not triton_kernel.INTERPRETED, reason="a GPU is here, and Triton compiles for it"
)

# The interpreter takes milliseconds for a step of the loop, and shrinking takes hundreds of runs.
PROPERTY = settings(
    max_examples=20, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def small(layout, shape=(2, 2), strip=(4, 4)):
    """A kernel of few rows and keys, and a layout cut for it: whole blocks in parts, and rests."""
    strips = cut_strips(layout.tiles, layout.n_queries, *strip)
    backend = TritonBackend("interpreter", KernelShape(*shape, warps=4, stages=1))
    return backend, replace(layout, strips=strips)


@PROPERTY
@given(
    case=layouts(),
    dtype=st.sampled_from(DTYPES),
    head_dim=st.sampled_from([4, 8, 12, 16]),
    shape=st.sampled_from([(4, 4), (2, 4), (4, 2), (1, 1)]),
    more=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_dense_attention(case, dtype, head_dim, shape, more, seed):
    layout, C = case
    backend, cut = small(layout, shape)
    q, k, v = draw_qkv(1, layout.n_queries, C, seed, dtype, head_dim)
    got = backend.attend(q, k, v, cut, more=more)
    check(got, q, k, v, layout)
    assert got.out_BLHD.dtype == (torch.float32 if more else dtype)


@PROPERTY
@given(
    cases=st.tuples(layouts(), layouts()),
    dtype=st.sampled_from(DTYPES),
    first=st.sampled_from(["triton", "sdpa"]),
    more=st.booleans(),
    seed=st.integers(0, 999),
)
def test_merges_into_a_running_state(cases, dtype, first, more, seed):
    """Its own, which is written into, or another backend's in other strides and dtypes."""
    (layout, C), (other, C_other) = cases
    L = layout.n_queries
    other = layout_of([tile for tile in other.tiles if tile.stop <= L], L)
    q, k, v = draw_qkv(1, L, C, seed, dtype)
    _, k_other, v_other = draw_qkv(1, L, C_other, seed + 10, dtype)
    backend, cut = small(other)
    before = backend if first == "triton" else SDPABackend()
    state = before.attend(q, k_other, v_other, cut, more=True)
    # Where nothing was attended the output may be anything finite.
    state.out_BLHD.transpose(1, 2)[state.lse_BHL == -math.inf] = 1e3
    out, lse = backend.attend(q, k, v, small(layout)[1], state=state, more=more)
    whole = merge(dense(q, k_other, v_other, other), dense(q, k, v, layout))
    nothing = whole.lse_BHL == -math.inf
    written_into = more and first == "triton"
    assert (out.data_ptr() == state.out_BLHD.data_ptr()) == written_into
    assert out.dtype == (torch.float32 if more else dtype)
    assert torch.equal(lse == -math.inf, nothing)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(lse.double(), whole.lse_BHL, **close)
    of_nothing = out.transpose(1, 2)[nothing]
    assert ((of_nothing == 0) | (of_nothing == 1e3 if written_into else False)).all()
    out.transpose(1, 2)[nothing] = 0
    torch.testing.assert_close(out.double(), whole.out_BLHD, **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 96, 128, 256])
def test_head_dimensions(dtype, head_dim):
    """Whole blocks of 128 and what is left, in the shapes that the interpreter runs by itself."""
    layout = layout_of([Tile(0, 70, ((0, 140), (150, 160))), Tile(75, 90, ((20, 155),))], 90)
    q, k, v = draw_qkv(1, 90, 160, 0, dtype, head_dim)
    check(TritonBackend("interpreter").attend(q, k, v, layout), q, k, v, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_of_exchange_buffers_and_fused_projections(dtype):
    """Read where they lie: no copy of keys or values is made."""
    layout = layout_of([Tile(0, 2, ((0, 3),)), Tile(2, 7, ((0, 2), (5, 11)))], 8)
    k, v = draw_tensor(2, 11, 0, dtype, 16).chunk(2, dim=-1)
    q = draw_tensor(2, 8, 1, dtype, 16)[..., 4:12]
    backend, cut = small(layout)
    for keys, values in ((k, v), unpack_kv(pack_kv(k, v))):
        assert not keys.is_contiguous()
        with KeyValueMemory(keys, values) as memory:
            got = backend.attend(q, keys, values, cut)
        assert memory.peak == 0
        check(got, q, k, v, layout)


def test_a_state_that_cannot_be_written_into_is_read():
    q, k, v = draw_qkv(2, 6, 6, 0, torch.float32)
    backend, _ = small(full_layout(6, 6))
    out, lse = backend.attend_all(q, k[:, :3], v[:, :3], more=True)
    state = AttentionState(out.transpose(1, 2).contiguous().transpose(1, 2), lse)
    before = [x.clone() for x in state]
    got = backend.attend_all(q, k[:, 3:], v[:, 3:], state=state, more=True)
    check(got, q, k, v, full_layout(6, 6))
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))


@pytest.mark.parametrize(("n_keys", "scale"), [(0, None), (1, 0.3), (4, 0.3), (11, None)])
def test_attend_all_is_attend_with_a_full_layout(n_keys, scale):
    """Without keys: zeros and −inf, or the state as it was."""
    q, k, v = draw_qkv(2, 5, 20, 0, torch.bfloat16)
    (k, k_rest), (v, v_rest) = (x.split([n_keys, 20 - n_keys], dim=1) for x in (k, v))
    backend, cut = small(full_layout(5, n_keys), shape=(4, 4))
    check(backend.attend_all(q, k, v, scale), q, k, v, full_layout(5, n_keys), scale)
    state = backend.attend_all(q, k_rest, v_rest, scale, more=True)
    copy = AttentionState(*(x.clone() for x in state))
    got = backend.attend_all(q, k, v, scale, state)
    both = torch.cat([k_rest, k], 1), torch.cat([v_rest, v], 1)
    check(got, q, *both, full_layout(5, 20), scale)
    for a, b in zip(got, backend.attend(q, k, v, cut, scale, copy), strict=True):
        assert torch.equal(a, b)


def test_no_queries_at_all():
    q, k, v = draw_qkv(2, 0, 3, 0, torch.float32)
    out, lse = TritonBackend("interpreter").attend_all(q, k, v)
    assert out.shape == q.shape
    assert lse.shape == (2, 2, 0)


T, P, X = 6, 64, 5


def whole_attention(rank, world, exchange, dtype):
    """Error of this rank's video tokens and of the text, against one dense attention."""
    engine = LVSAttention(
        published(T, interval=3, window=0, n_first=1, rotate=True),
        FrameGrid(T, 8, 8),
        group=dist.group.WORLD if world > 1 else None,
        exchange=exchange,
        backend="triton",
    )
    qkv = random_qkv(T * P, 0, B=2, dtype=dtype)
    text, valid = padded_text(X, 2, dtype)
    sets = placed("published", T, interval=3, window=0, n_first=1, rotate=True)[1]
    video_expected, text_expected = expected(qkv, sets, P, list(text[:3]), valid)
    L = engine.local_tokens
    mine = slice(rank * L, (rank + 1) * L)
    engine.step = 1
    video_out, text_out = engine(*(x[:, mine] for x in qkv), text)
    return (
        relative_error(video_out, video_expected[:, mine]),
        relative_error(text_out, text_expected),
        engine.received.kv_bytes,
    )


@pytest.mark.parametrize(("world", "exchanges"), [(1, ["needed"]), (2, EXCHANGES), (3, EXCHANGES)])
def test_whole_exchanges(world, exchanges):
    for exchange, dtype in zip(exchanges, DTYPES, strict=False):
        for video, text, received in run_ranks(world, whole_attention, exchange, dtype):
            assert max(video, text) < TOLERANCE[dtype]
            assert (received > 0) == (world > 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_dtypes_that_it_does_not_take(dtype):
    q = torch.zeros(1, 2, 1, 8, dtype=dtype)
    with refuses(BackendUnavailable, dtype, torch.float32, "math"):
        TritonBackend("interpreter").attend_all(q, q, q)


def test_head_dimensions_that_it_does_not_take():
    q = torch.zeros(1, 2, 1, 264)
    with refuses(BackendUnavailable, 264, 256):
        TritonBackend("interpreter").attend_all(q, q, q)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scales_that_it_does_not_take(scale):
    q = torch.zeros(1, 2, 1, 8)
    with refuses(LVSAError, scale):
        TritonBackend("interpreter").attend_all(q, q, q, scale)


@pytest.mark.parametrize(("interpreted", "device"), [(False, "cpu"), (False, "meta")])
def test_devices_that_it_does_not_run_on(interpreted, device, monkeypatch):
    monkeypatch.setattr(triton_kernel, "INTERPRETED", interpreted)
    with refuses(BackendUnavailable, "triton", device, "TRITON_INTERPRET=1", "sdpa"):
        get_backend("triton", device)


def test_gpus_that_no_shape_was_made_for(monkeypatch):
    monkeypatch.setattr(triton_kernel, "INTERPRETED", False)
    for capability, known in (((7, 5), None), ((8, 0), "sm_80"), ((9, 0), "sm_90")):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, c=capability: c)
        if known is None:
            with refuses(BackendUnavailable, "sm_75", "sm_80", "sm_90", "sm_100", "gfx942"):
                get_backend("triton", "cuda")
        else:
            assert get_backend("triton", "cuda").target == known


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lvsa.backends.triton_backend.find_spec", lambda name: None)
    with refuses(BackendUnavailable, "pip install triton"):
        get_backend("triton", "cuda")


class Recorder:
    """Stands in for the kernel, and keeps the grids of its launches."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.grids.append(grid)


def launches(rank, world, exchange):
    engine = long_sparse(world, exchange, rotate=True, frames=16, interval=4)
    engine.backend = TritonBackend("interpreter")
    engine.backend.kernel = recorder = Recorder()
    text = TextTokens(*random_qkv(5, 99), valid=valid_positions(torch.ones(1, 5)))
    offsets = engine.pattern.n_offsets
    shards = [random_qkv(engine.local_tokens, rank + step) for step in range(offsets)]
    with hot_path():
        for engine.step, (q, k, v) in enumerate(shards):
            engine(q, k, v, text)
    blocks = sum(len(plan.blocks) for plan in engine.exchange.plans)
    of_text = 3 if rank == 0 else 2  # video over text, text over video, and once text over text
    return len(recorder.grids), blocks + of_text * offsets


@pytest.mark.parametrize("world", [1, 2])
def test_one_launch_a_block_and_nothing_planned_in_the_hot_path(world):
    for exchange in EXCHANGES:
        for launched, planned in run_ranks(world, launches, exchange):
            assert launched == planned
