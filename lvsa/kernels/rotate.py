"""Rotary position embedding of queries and keys in one launch.

A program rotates a run of tokens for some of the heads, queries and keys, so that the angles of a
token are read once for these. Products and sums are in float32, rounded one by one like
those of PyTorch, so that the bits are the same: `rotate_both` is launched without fusion into
multiply-adds.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 2048
"""Of one head that a program holds at a time, over all its tokens."""
HEADS = 8
"""Heads of a program, one after the other."""


@triton.jit
def _rotate_head(
    x_head, out_head, cos, sin, rows_in, rows_out, inside,
    PAIRS: tl.constexpr, HALF: tl.constexpr, HALVES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One head of some tokens: pairs are neighbors, or stand half a head apart with HALVES."""
    if HALVES:
        pair = tl.arange(0, HALF)[None, :]
        here = inside & (pair < PAIRS)
        first = tl.load(x_head + rows_in + pair, here, 0.0).to(tl.float32)
        second = tl.load(x_head + rows_in + pair + PAIRS, here, 0.0).to(tl.float32)
        element = out_head.dtype.element_ty
        tl.store(out_head + rows_out + pair, (first * cos - second * sin).to(element), here)
        tl.store(out_head + rows_out + pair + PAIRS, (first * sin + second * cos).to(element), here)
    else:
        channel = tl.arange(0, 2 * HALF)[None, :]
        here = inside & (channel < 2 * PAIRS)
        x = tl.load(x_head + rows_in + channel, here, 0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, [ROWS, HALF, 2]))
        pairs = tl.join(first * cos - second * sin, first * sin + second * cos)
        rotated = tl.reshape(pairs, [ROWS, 2 * HALF]).to(out_head.dtype.element_ty)
        tl.store(out_head + rows_out + channel, rotated, here)


# Lengths and strides of lengths: one kernel serves them all, however they divide.
@triton.jit(do_not_specialize=["n_tokens"])
def rotate_both(
    q, k, q_out, k_out, cos, sin,
    q_b, q_l, q_h, k_b, k_l, k_h, c_l, c_p, s_l, s_p, n_tokens, H,
    PAIRS: tl.constexpr, HALF: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Queries and keys turned by the angles of their tokens.

    Args:
        q, k: [B, L, H, 2·PAIRS], channels contiguous; strides of batch, tokens and heads.
        q_out, k_out: contiguous, of the same shape.
        cos, sin: [L, PAIRS] with strides of tokens and pairs.
        HALF: PAIRS, or the next power of 2.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = rows < n_tokens
    angles = inside & (pair < PAIRS)
    c = tl.load(cos + rows * c_l + pair * c_p, angles, 0.0).to(tl.float32)
    s = tl.load(sin + rows * s_l + pair * s_p, angles, 0.0).to(tl.float32)
    b = tl.program_id(2).to(tl.int64)
    rows_out = (b * n_tokens + rows) * H * (2 * PAIRS)
    first = tl.program_id(1) * HEADS
    for h in tl.range(first, tl.minimum(first + HEADS, H)):
        out = h * (2 * PAIRS)
        _rotate_head(
            q + b * q_b + h * q_h, q_out + out, c, s, rows * q_l, rows_out, inside,
            PAIRS, HALF, HALVES, ROWS,
        )  # fmt: skip
        _rotate_head(
            k + b * k_b + h * k_h, k_out + out, c, s, rows * k_l, rows_out, inside,
            PAIRS, HALF, HALVES, ROWS,
        )  # fmt: skip


def tile(head_dim: int) -> tuple[int, int]:
    """Pairs of channels, padded to a power of 2, and tokens of a program."""
    half: int = triton.next_power_of_2(head_dim // 2)
    return half, max(1, CHANNELS // (2 * half))


def rotate(
    q_BLHD: Tensor, k_BLHD: Tensor, cos_LP: Tensor, sin_LP: Tensor, halves: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys, contiguous.

    Args:
        q_BLHD, k_BLHD: of one shape, channels contiguous.
        cos_LP, sin_LP: ``[L, D/2]``, any strides.
        halves: whether a pair stands half a head apart instead of side by side.
    """
    B, L, H, D = q_BLHD.shape
    half, rows = tile(D)
    q_out, k_out = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_BLHD, k_BLHD)
    )
    grid = triton.cdiv(L, rows), triton.cdiv(H, HEADS), B
    with torch.cuda.device(q_BLHD.device.index) if q_BLHD.is_cuda else nullcontext():
        rotate_both[grid](
            q_BLHD, k_BLHD, q_out, k_out, cos_LP, sin_LP,
            *q_BLHD.stride()[:3], *k_BLHD.stride()[:3], *cos_LP.stride(), *sin_LP.stride(), L, H,
            PAIRS=D // 2, HALF=half, HALVES=halves,
            ROWS=rows, HEADS=HEADS, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return q_out, k_out
