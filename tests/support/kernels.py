"""What every attention kernel is held to: a dense softmax in float64."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState
from tests.support.layouts import layout_mask
from tests.support.oracle import relative_error

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 1.5e-2,
    torch.float16: 2e-3,
}
H, D = 2, 8


def draw_tensor(
    B: int, n: int, seed: int, dtype: torch.dtype = torch.float64, head_dim: int = D
) -> Tensor:
    """``[B, n, H, head_dim]``; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, n, H, head_dim, generator=generator, dtype=torch.float64).to(dtype)


def draw_qkv(
    B: int,
    n_queries: int,
    n_keys: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
    head_dim: int = D,
) -> list[Tensor]:
    """Queries, keys and values."""
    lengths = (n_queries, n_keys, n_keys)
    return [draw_tensor(B, n, seed + i, dtype, head_dim) for i, n in enumerate(lengths)]


def dense(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float | None = None
) -> AttentionState:
    """Output and log-sum-exp in float64; zero and −inf for queries that attend nothing."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores.masked_fill(~layout_mask(layout, k.shape[2]), -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return AttentionState((weights @ v).transpose(1, 2), scores.logsumexp(-1))


def check(
    got: AttentionState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    scale: float | None = None,
    tolerance: Mapping[torch.dtype, float] = TOLERANCE,
) -> None:
    """Holds a kernel's result against `dense`, in dtypes, shapes and values."""
    out, lse = dense(q, k, v, layout, scale)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    assert got.out_BLHD.dtype in (q.dtype, lse_dtype)
    assert got.lse_BHL.dtype == lse_dtype
    assert got.out_BLHD.shape == q.shape
    assert got.lse_BHL.shape == (q.shape[0], q.shape[2], layout.n_queries)
    attended = layout_mask(layout, k.shape[1]).any(1)
    assert (got.out_BLHD[:, ~attended] == 0).all()
    assert (got.lse_BHL[:, :, ~attended] == -math.inf).all()
    if attended.any():
        assert relative_error(got.out_BLHD, out) < tolerance[q.dtype]
        near = got.lse_BHL[:, :, attended].double() - lse[:, :, attended]
        assert near.abs().max() < tolerance[q.dtype]
