"""The contract of all backends that run here, against a dense softmax in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.backends.choice import AutoBackend
from lvsa.backends.plain import MathBackend, chunks
from lvsa.backends.sdpa import SDPABackend
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.layout import full_layout, layout_of
from lvsa.merge import merge
from lvsa.tiles import Tile
from tests.support.kernels import TOLERANCE, H, check, dense, draw_qkv, draw_tensor
from tests.support.layouts import layouts
from tests.support.oracle import relative_error

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
BACKENDS = (SDPABackend, MathBackend, lambda: AutoBackend(torch.device("cpu")))


@pytest.mark.parametrize(
    "make",
    [
        lambda small: SDPABackend(gather_bytes=1 if small else 1 << 20),
        lambda small: MathBackend(*((1, 1) if small else ())),
        lambda small: MathBackend(*((1000, 3) if small else ())),
    ],
)
@PROPERTY
@given(
    case=layouts(),
    B=st.integers(1, 2),
    dtype=st.sampled_from([*TOLERANCE]),
    small=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_dense_attention(make, case, B, dtype, small, seed):
    layout, C = case
    q, k, v = draw_qkv(B, layout.n_queries, C, seed, dtype)
    check(make(small).attend(q, k, v, layout), q, k, v, layout)


@pytest.mark.parametrize("make", BACKENDS)
@PROPERTY
@given(
    case=layouts(),
    other=layouts(),
    dtype=st.sampled_from([*TOLERANCE]),
    seed=st.integers(0, 999),
    more=st.booleans(),
)
def test_merges_into_a_running_state(make, case, other, dtype, seed, more):
    """Two blocks, of which a query may attend keys in both, in one or in none."""
    (layout, C), (before, C_before) = case, other
    before = layout_of(
        [tile for tile in before.tiles if tile.stop <= layout.n_queries], layout.n_queries
    )
    q, k, v = draw_qkv(2, layout.n_queries, C, seed, dtype)
    _, k_before, v_before = draw_qkv(2, layout.n_queries, C_before, seed + 10, dtype)
    backend = make()
    state = backend.attend(q, k_before, v_before, before, more=True)
    out, lse = backend.attend(q, k, v, layout, None, state, more)
    expected = merge(dense(q, k_before, v_before, before), dense(q, k, v, layout))
    nothing = expected.lse_BHL == -math.inf
    assert torch.equal(lse == -math.inf, nothing)
    torch.testing.assert_close(
        lse.double(), expected.lse_BHL, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    assert not out.isnan().any()
    assert (out.transpose(1, 2)[nothing] == 0).all()
    if not nothing.all():
        assert relative_error(out, expected.out_BLHD) < TOLERANCE[dtype]


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=str)
@pytest.mark.parametrize("head_dim", [4, 12, 64])
def test_any_strides_with_a_contiguous_last_dimension(make, dtype, head_dim):
    """Exchanges hand over views of token-major buffers, models views of fused projections."""
    tiles = (Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),)), Tile(4, 7, ((0, 2), (5, 9))))
    layout = layout_of(tiles, 8)
    fused = draw_tensor(2, 9, 0, dtype, 3 * head_dim)
    q, k, v = fused.chunk(3, dim=-1)
    q = q[:, :8]
    assert not any(x.is_contiguous() for x in (q, k, v))
    check(make().attend(q, k, v, layout), q, k, v, layout)
    k_view, v_view = unpack_kv(pack_kv(k, v))
    assert not k_view.is_contiguous()
    check(make().attend(q, k_view, v_view, layout), q, k, v, layout)


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scale(make, scale):
    layout = layout_of((Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),))), 4)
    q, k, v = draw_qkv(1, 4, 4, 0)
    got = make().attend(q, k, v, layout, scale)
    check(got, q, k, v, layout, scale)
    assert (got.out_BLHD - make().attend(q, k, v, layout).out_BLHD).abs().max() > 1e-3


@pytest.mark.parametrize("make", BACKENDS)
@pytest.mark.parametrize("dtype", [*TOLERANCE], ids=str)
@pytest.mark.parametrize("n_keys", [0, 1, 9])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attend_all_is_attend_with_a_full_layout(make, dtype, n_keys, scale):
    """Without keys: zeros and −inf, or the running state."""
    q, k, v = draw_qkv(2, 5, n_keys, 0, dtype)
    full = full_layout(5, n_keys)
    backend = make()
    got = backend.attend_all(q, k, v, scale)
    check(got, q, k, v, full, scale)
    for a, b in zip(got, backend.attend(q, k, v, full, scale), strict=True):
        assert torch.equal(a, b)
    _, k, v = draw_qkv(2, 5, 4, 7, dtype)
    expected = merge(got, backend.attend_all(q, k, v, scale))
    merged = backend.attend_all(q, k, v, scale, got, more=True)
    torch.testing.assert_close(
        merged.out_BLHD, expected.out_BLHD, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    torch.testing.assert_close(merged.lse_BHL, expected.lse_BHL)


@pytest.mark.parametrize("make", BACKENDS)
def test_no_queries_at_all(make):
    q, k, v = draw_qkv(2, 0, 4, 0)
    out, lse = make().attend_all(q, k[:, :0], v[:, :0])
    assert out.shape == q.shape
    assert lse.shape == (2, H, 0)


@pytest.mark.parametrize("make", [SDPABackend, MathBackend])
def test_scores_that_overflow_without_their_maximum(make):
    q, k, v = draw_qkv(1, 3, 5, 0, torch.float32)
    layout = full_layout(3, 5)
    got = make().attend(q * 1e3, k, v, layout)
    out, lse = dense(q * 1e3, k, v, layout)
    assert relative_error(got.out_BLHD, out) < 1e-4
    torch.testing.assert_close(got.lse_BHL.double(), lse, rtol=1e-5, atol=1e-3)


def test_math_is_more_exact_than_its_inputs():
    """The reference for the others: what is lost is the rounding of the output, once."""
    q, k, v = draw_qkv(1, 64, 300, 0, torch.bfloat16, head_dim=64)
    layout = full_layout(64, 300)
    exact = dense(q, k, v, layout)
    for backend in (MathBackend(), MathBackend(score_bytes=4000, keys=7)):
        out, lse = backend.attend(q, k, v, layout, more=True)
        assert relative_error(out, exact.out_BLHD) < 3e-6
        assert (lse.double() - exact.lse_BHL).abs().max() < 1e-5
        rounded = backend.attend(q, k, v, layout).out_BLHD
        assert torch.equal(rounded, out.to(torch.bfloat16))


def test_math_holds_scores_of_bounded_size(monkeypatch):
    q, k, v = draw_qkv(2, 50, 40, 0, torch.float32)
    seen = []

    def product(a, b, multiply=torch.Tensor.matmul):
        seen.append((a.shape[2], b.shape[3]))
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    score_bytes = 6 * 16 * 2 * H * 4
    MathBackend(score_bytes, keys=16).attend_all(q, k, v)
    scores = seen[::2]  # the others are weights by values
    assert sum(rows * columns for rows, columns in scores) == 50 * 40
    assert max(columns for _, columns in scores) == 16
    assert all(rows * columns <= 6 * 16 for rows, columns in scores)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=5),
    most=st.integers(1, 20),
)
def test_chunks_hold_every_token_once_in_order(ranges, most):
    ranges = [(start, start + size) for start, size in ranges]
    tokens = [token for start, stop in ranges for token in range(start, stop)]
    chunked = [
        [token for start, stop in chunk for token in range(start, stop)]
        for chunk in chunks(ranges, most)
    ]
    assert [token for chunk in chunked for token in chunk] == tokens
    assert all(len(chunk) == most for chunk in chunked[:-1])
