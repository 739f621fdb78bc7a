"""Exact merging of attention over disjoint sets of keys.

A state is softmax attention over some of the keys together with the log-sum-exp of its scores.
Two of them merge to the attention over the union (the identity behind online softmax, Milakov and
Gimelshein 2018, and ring attention, Liu et al. 2023).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lvsa.kernels import fused


class AttentionState(NamedTuple):
    """Attention over part of the keys.

    out_BLHD: the softmax-weighted values; anything finite where no key was attended.
    lse_BHL: natural log-sum-exp of the scaled scores, float32 or float64; −inf where no key was
        attended.
    """

    out_BLHD: Tensor
    lse_BHL: Tensor


def merge(a: AttentionState, b: AttentionState) -> AttentionState:
    """Attention over the keys of ``a`` and ``b``; both must be over the same queries.

    Accumulates in the precision of the log-sum-exp. Queries that attended nothing in one of them
    (−inf) take the other's value; in both, they stay −inf with a zero output, never NaN.
    """
    lse = torch.logaddexp(a.lse_BHL, b.lse_BHL)
    # −inf − (−inf) is NaN: clamp the subtrahend, so that both weights come out as exp(−inf) = 0.
    floor = lse.clamp(min=torch.finfo(lse.dtype).min)
    weight_a = torch.exp(a.lse_BHL - floor).transpose(1, 2).unsqueeze(-1)
    weight_b = torch.exp(b.lse_BHL - floor).transpose(1, 2).unsqueeze(-1)
    out = torch.addcmul(b.out_BLHD * weight_b, a.out_BLHD.to(lse.dtype), weight_a)
    return AttentionState(out, lse)


def merge_into(
    running: AttentionState | None, state: AttentionState, dtype: torch.dtype | None = None
) -> AttentionState:
    """A running state with another merged into it; there is none at the start.

    On GPUs with Triton in one launch, which writes into the running state where it can.

    Args:
        running: belongs to this function from here on.
        state: over other keys.
        dtype: of the merged output, by default that of the log-sum-exp. A state that meets no
            other stays as it is.
    """
    if running is None:
        return state
    dtype = running.lse_BHL.dtype if dtype is None else dtype
    if fused(state.out_BLHD) and state.lse_BHL.dtype == torch.float32:
        from lvsa.kernels.merge import merge as merge_fused

        return AttentionState(*merge_fused(*running, *state, dtype, in_place=True))
    out, lse = merge(running, state)
    return AttentionState(out.to(dtype), lse)


def merge_all(states: Iterable[AttentionState]) -> AttentionState:
    """Merges in the order given, so that every rank that does it gets the same bits."""
    merged: AttentionState | None = None
    for state in states:
        merged = merge_into(merged, state)
    assert merged is not None, "there is no state of no keys"
    return merged
