"""Two states of attention merged in one launch, into a new one or into the first of them."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 2048
"""Of one head that a program holds at a time, over all its queries."""


# Lengths and strides of lengths: one kernel serves them all, however they divide.
@triton.jit(do_not_specialize=["n_queries", "ae_b", "ae_h", "ae_l", "be_b", "be_h", "be_l"])
def merge_states(
    out, lse, a_out, a_lse, b_out, b_lse,
    a_b, a_l, a_h, b_b, b_l, b_h, ae_b, ae_h, ae_l, be_b, be_h, be_l, n_queries, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The state over the keys of both.

    Args:
        out, lse: contiguous [B, L, H, D] and [B, H, L]; may be those of state a.
        a_out, b_out: [B, L, H, D], channels contiguous; strides of batch, tokens and heads.
        a_lse, b_lse: [B, H, L]; strides of batch, heads and tokens.
    """
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = rows < n_queries
    a_e = tl.load(a_lse + b * ae_b + h * ae_h + rows * ae_l, inside, float("-inf"))
    b_e = tl.load(b_lse + b * be_b + h * be_h + rows * be_l, inside, float("-inf"))
    higher = tl.maximum(a_e, b_e)
    nothing = higher == float("-inf")
    # −inf − (−inf) is NaN.
    floor = tl.where(nothing, 0.0, higher)
    a_w, b_w = tl.exp(a_e - floor), tl.exp(b_e - floor)
    total = tl.where(nothing, 1.0, a_w + b_w)
    a_w, b_w = a_w / total, b_w / total
    channels = tl.arange(0, BLOCK_D)[None, :]
    here = inside[:, None] & (channels < D)
    a = tl.load(a_out + b * a_b + h * a_h + rows[:, None] * a_l + channels, here, 0.0)
    o = tl.load(b_out + b * b_b + h * b_h + rows[:, None] * b_l + channels, here, 0.0)
    merged = a.to(tl.float32) * a_w[:, None] + o.to(tl.float32) * b_w[:, None]
    place = out + ((b * n_queries + rows[:, None]) * H + h) * D + channels
    tl.store(place, merged.to(out.dtype.element_ty), here)
    natural = tl.where(nothing, float("-inf"), floor + tl.log(total))
    tl.store(lse + (b * H + h) * n_queries + rows, natural, inside)


def tile(head_dim: int) -> tuple[int, int]:
    """Channels padded to a power of 2, and queries of a program."""
    block: int = triton.next_power_of_2(head_dim)
    return block, max(1, CHANNELS // block)


def merge(
    a_BLHD: Tensor, a_BHL: Tensor, b_BLHD: Tensor, b_BHL: Tensor, dtype: torch.dtype, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Output in ``dtype`` and log-sum-exp of the union, of states of the same queries.

    Args:
        a_BLHD, a_BHL: output and float32 log-sum-exp of one state.
        b_BLHD, b_BHL: of the other.
        in_place: whether to write into the first where it has the dtype and is contiguous.
    """
    B, L, H, D = a_BLHD.shape
    fits = a_BLHD.dtype == dtype and a_BLHD.is_contiguous() and a_BHL.is_contiguous()
    if in_place and fits:
        out, lse = a_BLHD, a_BHL
    else:
        out = a_BLHD.new_empty(a_BLHD.shape, dtype=dtype)
        lse = a_BHL.new_empty(a_BHL.shape)
    block, rows = tile(D)
    grid = triton.cdiv(L, rows), H, B
    with torch.cuda.device(out.device.index) if out.is_cuda else nullcontext():
        merge_states[grid](
            out, lse, a_BLHD, a_BHL, b_BLHD, b_BHL,
            *a_BLHD.stride()[:3], *b_BLHD.stride()[:3], *a_BHL.stride(), *b_BHL.stride(), L, H,
            D=D, BLOCK_D=block, ROWS=rows, num_warps=4,
        )  # fmt: skip
    return out, lse
