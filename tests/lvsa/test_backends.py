"""Kernels against a dense softmax in float64, for layouts of every shape."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.backends import BACKENDS, get_backend
from lvsa.backends.sdpa import SDPABackend, kernel_for
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.layout import Tile, full_layout, layout_of
from tests.support.errors import refuses
from tests.support.layouts import layout_mask, layouts
from tests.support.memory import KeyValueMemory
from tests.support.oracle import relative_error

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 1.5e-2,
    torch.float16: 2e-3,
}
H, D = 2, 8


def draw_tensor(B, n, seed, dtype=torch.float64, head_dim=D):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, n, H, head_dim, generator=generator, dtype=torch.float64).to(dtype)


def dense(q, k, v, layout, scale=None):
    """Output and log-sum-exp in float64; zero and −inf for queries that attend nothing."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores.masked_fill(~layout_mask(layout, k.shape[2]), -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2), scores.logsumexp(-1)


def check(got, q, k, v, layout, dtype, scale=None):
    out, lse = dense(q, k, v, layout, scale)
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.out_BLHD.dtype in (dtype, lse_dtype)
    assert got.lse_BHL.dtype == lse_dtype
    assert got.out_BLHD.shape == q.shape
    assert got.lse_BHL.shape == (q.shape[0], H, layout.n_queries)
    attended = layout_mask(layout, k.shape[1]).any(1)
    assert (got.out_BLHD[:, ~attended] == 0).all()
    assert (got.lse_BHL[:, :, ~attended] == -math.inf).all()
    if attended.any():
        assert relative_error(got.out_BLHD, out) < TOLERANCE[dtype]
        near = got.lse_BHL[:, :, attended].double() - lse[:, :, attended]
        assert near.abs().max() < TOLERANCE[dtype]


@PROPERTY
@given(
    case=layouts(),
    B=st.integers(1, 2),
    dtype=st.sampled_from([*TOLERANCE]),
    gather_bytes=st.sampled_from([1, 1000, 1 << 20]),
    seed=st.integers(0, 999),
)
def test_equals_dense_attention(case, B, dtype, gather_bytes, seed):
    layout, C = case
    q, k, v = (draw_tensor(B, n, seed + i, dtype) for i, n in enumerate((layout.n_queries, C, C)))
    backend = SDPABackend(gather_bytes)
    check(backend.attend(q, k, v, layout), q, k, v, layout, dtype)


@PROPERTY
@given(case=layouts(), seed=st.integers(0, 999), small=st.booleans())
def test_batched_tiles_equal_tiles_one_by_one(case, seed, small):
    layout, C = case
    q, k, v = (draw_tensor(2, n, seed + i) for i, n in enumerate((layout.n_queries, C, C)))
    batched = SDPABackend().attend(q, k, v, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvsa.backends.sdpa.SMALL_TILE_WORK", {"cpu": 0})
        one_by_one = SDPABackend().attend(q, k, v, layout)
    torch.testing.assert_close(batched, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=str)
@pytest.mark.parametrize("head_dim", [4, 12, 64])
def test_any_strides_with_a_contiguous_last_dimension(dtype, head_dim):
    """Exchanges hand over views of token-major buffers, models views of fused projections."""
    tiles = (Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),)), Tile(4, 7, ((0, 2), (5, 9))))
    layout = layout_of(tiles, 8)
    fused = draw_tensor(2, 9, 0, dtype, 3 * head_dim)
    q, k, v = fused.chunk(3, dim=-1)
    q = q[:, :8]
    assert not any(x.is_contiguous() for x in (q, k, v))
    check(SDPABackend().attend(q, k, v, layout), q, k, v, layout, dtype)
    k_view, v_view = unpack_kv(pack_kv(k, v))
    assert not k_view.is_contiguous()
    check(SDPABackend().attend(q, k_view, v_view, layout), q, k, v, layout, dtype)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scale(scale):
    layout = layout_of((Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),))), 4)
    q, k, v = (draw_tensor(1, 4, seed) for seed in range(3))
    got = SDPABackend().attend(q, k, v, layout, scale)
    check(got, q, k, v, layout, torch.float64, scale)
    assert (got.out_BLHD - SDPABackend().attend(q, k, v, layout).out_BLHD).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=str)
@pytest.mark.parametrize("n_keys", [0, 1, 9])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attend_all_is_attend_with_a_full_layout(dtype, n_keys, scale):
    """Without keys: zeros and −inf."""
    q, k, v = (draw_tensor(2, n, seed, dtype) for seed, n in enumerate((5, 12, 12)))
    k, v = k[:, :n_keys], v[:, :n_keys]
    full = full_layout(5, n_keys)
    got = SDPABackend().attend_all(q, k, v, scale)
    check(got, q, k, v, full, dtype, scale)
    for a, b in zip(got, SDPABackend().attend(q, k, v, full, scale), strict=True):
        assert torch.equal(a, b)


def test_no_queries_at_all():
    q, k, v = (draw_tensor(2, n, seed) for seed, n in enumerate((0, 4, 4)))
    out, lse = SDPABackend().attend_all(q, k[:, :0], v[:, :0])
    assert out.shape == q.shape
    assert lse.shape == (2, H, 0)


def test_copies_stay_below_the_limit():
    tiles = tuple(Tile(i, i + 1, ((i, i + 1), (i + 2, i + 4))) for i in range(40))
    layout = layout_of(tiles, 40)
    q, k, v = (draw_tensor(1, 44, seed, torch.float32) for seed in range(3))
    of_one_tile = 2 * 3 * H * D * 4
    for n in (1, 5, 40):
        with KeyValueMemory(k, v) as memory:
            SDPABackend(gather_bytes=n * of_one_tile).attend(q[:, :40], k, v, layout)
        assert memory.peak == n * of_one_tile


def test_unknown_name_lists_the_known_ones():
    with refuses(LVSAError, "sdap", *BACKENDS):
        get_backend("sdap")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_in_the_registry_works(name):
    backend = get_backend(name)
    assert backend.name == name
    layout = layout_of((Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),))), 4)
    q, k, v = (draw_tensor(1, 4, seed) for seed in range(3))
    check(backend.attend(q, k, v, layout), q, k, v, layout, torch.float64)


def test_a_device_without_a_kernel_is_an_error():
    q = torch.empty(1, 2, H, D, device="meta", dtype=torch.bfloat16)
    backend = SDPABackend()
    for call in (
        lambda: kernel_for(q),
        lambda: backend.attend(q, q, q, full_layout(2, 2)),
        lambda: backend.attend_all(q, q, q),
    ):
        with refuses(BackendUnavailable, "sdpa", torch.bfloat16, D, "meta", "CUDA", "CPU"):
            call()
