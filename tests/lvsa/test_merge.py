"""Merging states equals attention over the union of their keys."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.merge import AttentionState, merge, merge_all, merge_into
from tests.support.oracle import masked_attention

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
B, L, H, D = 2, 5, 3, 4


def draw(n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, n, H, D, generator=generator, dtype=torch.float64).to(dtype)


def state_over(q, k, v, mask):
    """Attention of [L] queries over the keys that ``mask`` [L, C] allows; none is −inf."""
    scores = torch.einsum("blhd,bchd->bhlc", q, k) / math.sqrt(D)
    scores = scores.masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.clamp(min=-1e30).unsqueeze(-1))
    return AttentionState(torch.einsum("bhlc,bchd->blhd", weights, v), lse)


@PROPERTY
@given(
    owners=st.lists(st.lists(st.integers(0, 3), min_size=L, max_size=L), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_equals_attention_over_the_union(owners, seed):
    """Each (key, query) pair is in one of three states, or (3) attended by nobody."""
    owner = torch.tensor(owners).T  # [L, C]
    C = owner.shape[1]
    q, k, v = draw(L, seed), draw(C, seed + 1), draw(C, seed + 2)
    merged = merge_all(state_over(q, k, v, owner == part) for part in range(3))
    whole = state_over(q, k, v, owner < 3)
    assert not merged.out_BLHD.isnan().any()
    torch.testing.assert_close(merged.out_BLHD, whole.out_BLHD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.lse_BHL, whole.lse_BHL, rtol=1e-12, atol=1e-12)
    attended = (owner < 3).any(1)
    expected = masked_attention(q, k, v, (owner < 3) | ~attended[:, None])
    torch.testing.assert_close(merged.out_BLHD[:, attended], expected[:, attended])
    assert (merged.out_BLHD[:, ~attended] == 0).all()
    assert (merged.lse_BHL[:, :, ~attended] == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_attended_nothing_takes_the_other_value(dtype):
    """Its output may be anything finite: it counts for nothing."""
    q, k, v = draw(L, 0, dtype), draw(4, 1, dtype), draw(4, 2, dtype)
    something = state_over(q, k, v, torch.ones(L, 4, dtype=torch.bool))
    nothing = AttentionState(torch.full_like(q, 1e9), q.new_full((B, H, L), -math.inf))
    for merged in (merge(something, nothing), merge(nothing, something)):
        assert torch.equal(merged.out_BLHD, something.out_BLHD)
        assert torch.equal(merged.lse_BHL, something.lse_BHL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_and_nothing_is_zero_and_not_nan(dtype):
    nothing = AttentionState(
        torch.full((B, L, H, D), 7.0, dtype=dtype), torch.full((B, H, L), -math.inf, dtype=dtype)
    )
    merged = merge(merge(nothing, nothing), nothing)
    assert (merged.out_BLHD == 0).all()
    assert (merged.lse_BHL == -math.inf).all()


def test_there_is_no_running_state_at_the_start():
    q, k, v = draw(L, 0), draw(4, 1), draw(4, 2)
    state = state_over(q, k, v, torch.ones(L, 4, dtype=torch.bool))
    assert merge_into(None, state) is state
    for got, expected in zip(merge_into(state, state), merge(state, state), strict=True):
        assert torch.equal(got, expected)


def test_far_apart_scores_do_not_overflow():
    q, k, v = (draw(n, s, torch.float32) for n, s in ((L, 0), (4, 1), (4, 2)))
    state = state_over(q, k, v, torch.ones(L, 4, dtype=torch.bool))
    high = AttentionState(state.out_BLHD, state.lse_BHL + 1e4)
    low = AttentionState(state.out_BLHD + 1, state.lse_BHL - 1e4)
    torch.testing.assert_close(merge(high, low).out_BLHD, high.out_BLHD)
    torch.testing.assert_close(merge(low, high).out_BLHD, high.out_BLHD)


def test_accumulates_in_the_precision_of_the_log_sum_exp():
    out = torch.ones(B, L, H, D, dtype=torch.bfloat16)
    lse = torch.zeros(B, H, L)
    merged = merge(AttentionState(out, lse), AttentionState(out, lse))
    assert merged.out_BLHD.dtype == torch.float32
    assert merged.lse_BHL.dtype == torch.float32
    torch.testing.assert_close(merged.lse_BHL, torch.full_like(lse, math.log(2)))
