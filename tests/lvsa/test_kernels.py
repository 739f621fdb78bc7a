"""The kernels beside attention against the operations that they stand for, in the interpreter."""

import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lvsa import kernels
from lvsa.merge import AttentionState, merge
from lvsa.rope import rotate

rotate_kernel = pytest.importorskip("lvsa.kernels.rotate")
merge_kernel = pytest.importorskip("lvsa.kernels.merge")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is here, and Triton compiles for it"
)
PROPERTY = settings(
    max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@PROPERTY
@given(
    L=st.integers(1, 70),
    H=st.integers(1, 10),
    B=st.integers(1, 2),
    pairs=st.sampled_from([1, 3, 4, 6]),
    dtype=st.sampled_from(DTYPES),
    halves=st.booleans(),
    twice=st.booleans(),
    seed=st.integers(0, 999),
)
def test_rotation_gives_the_bits_of_the_operations(L, H, B, pairs, dtype, halves, twice, seed):
    """Queries and keys in strides of their own, tables in which each angle stands once or twice."""
    q, k = draw((B, L, 2, H, 2 * pairs), seed, dtype).unbind(2)
    assert not q.is_contiguous() or B * L == 1
    angle = draw((L, pairs * (2 if twice else 1)), seed + 1)
    cos, sin = angle.cos(), angle.sin()
    if twice:
        cos, sin = cos[:, 0::2], sin[:, 1::2]
    got = rotate_kernel.rotate(q, k, cos, sin, halves)
    for x, rotated in zip((q, k), got, strict=True):
        assert rotated.is_contiguous() and rotated.dtype == dtype
        expected = rotate(x, x, cos, sin, halves)[0]
        if dtype == torch.bfloat16:  # which the interpreter cuts off where GPUs round
            close = {"rtol": torch.finfo(dtype).eps, "atol": 0.0}
            torch.testing.assert_close(rotated, expected, **close)
        else:
            assert torch.equal(rotated, expected)


def states(L, seed, dtype):
    """A state in which some queries attended nothing: anything finite stands there."""
    out, lse = draw((2, L, 3, 6), seed, dtype), 4 * draw((2, 3, L), seed + 1)
    nothing = draw((2, 3, L), seed + 2) > 0.5
    out.transpose(1, 2)[nothing] = 1e3
    return AttentionState(out, lse.masked_fill(nothing, -math.inf))


@PROPERTY
@given(
    L=st.integers(1, 70),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    dtype=st.sampled_from(DTYPES),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
def test_merging_equals_the_operations(L, dtypes, dtype, in_place, seed):
    a, b = (states(L, seed + i, d) for i, d in enumerate(dtypes))
    # As kernels return them: heads first, and rows of the log-sum-exp with something between.
    b = AttentionState(b.out_BLHD.transpose(1, 2).contiguous().transpose(1, 2), b.lse_BHL)
    b = b._replace(lse_BHL=torch.stack([b.lse_BHL, b.lse_BHL], -1)[..., 0])
    expected = merge(*(AttentionState(x.out_BLHD.double(), x.lse_BHL.double()) for x in (a, b)))
    out, lse = merge_kernel.merge(*a, *b, dtype, in_place)
    written_into = in_place and dtype == a.out_BLHD.dtype
    assert (out.data_ptr() == a.out_BLHD.data_ptr()) == written_into
    assert (lse.data_ptr() == a.lse_BHL.data_ptr()) == written_into
    assert out.dtype == dtype and out.is_contiguous()
    close = {"rtol": 2e-6, "atol": 2e-6}
    torch.testing.assert_close(lse.double(), expected.lse_BHL, **close)
    if dtype != torch.float32:
        close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out.double(), expected.out_BLHD, **close)
    assert torch.equal(lse == -math.inf, expected.lse_BHL == -math.inf)


def test_kernels_serve_gpus_and_no_gradients(monkeypatch):
    class OnGPU:
        is_cuda, requires_grad = True, True

    x = OnGPU()
    assert not kernels.fused(x)
    with torch.no_grad():
        assert kernels.fused(x)
        monkeypatch.setattr(kernels, "INSTALLED", False)
        assert not kernels.fused(x)
    assert not kernels.fused(torch.zeros(1))
