"""Where keyframes stand, and how many there are: against the rules written out by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.keyframes import (
    attention_budget,
    automatic_interval,
    even_count,
    even_keyframes,
    published_keyframes,
)
from tests.support import oracle
from tests.support.errors import refuses

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


@PROPERTY
@given(
    frames=st.integers(1, 90),
    horizon=st.integers(1, 40),
    window=st.integers(0, 8),
    n_first=st.integers(0, 6),
    scale=st.sampled_from([0.3, 0.5, 1.0, 1.5]),
)
def test_automatic_interval_is_the_published_rule(frames, horizon, window, n_first, scale):
    got = automatic_interval(frames, horizon, window, n_first, scale)
    assert got == oracle.published_interval(frames, horizon, window, n_first, scale)


@pytest.mark.parametrize(
    ("frames", "horizon", "interval"),
    [(21, 21, 1), (81, 21, 6), (121, 21, 9), (33, 33, 1), (49, 33, 2), (65, 33, 3)],
)
def test_automatic_interval_known_values(frames, horizon, interval):
    assert automatic_interval(frames, horizon, window=3, n_first=1) == interval


def test_a_larger_scale_attends_more():
    intervals = [automatic_interval(161, 21, 3, 1, scale) for scale in (0.6, 1.0, 2.0, 8.0)]
    assert intervals == sorted(intervals, reverse=True)
    assert intervals[0] > intervals[-1] == 1


@PROPERTY
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 200))
def test_published_keyframes(frames, interval, offset):
    got = set(np.flatnonzero(published_keyframes(frames, interval, offset)).tolist())
    assert got == oracle.published_keyframes(frames, interval, offset)


@PROPERTY
@given(data=st.data(), frames=st.integers(1, 60), offset=st.integers(0, 100))
def test_even_keyframes_are_as_many_as_asked_for_and_none_is_fixed(data, frames, offset):
    fixed = sorted(data.draw(st.sets(st.integers(0, frames - 1), max_size=frames)))
    count = data.draw(st.integers(0, frames - len(fixed)))
    keyframes = even_keyframes(frames, fixed, count, offset)
    assert keyframes.sum() == count
    assert not keyframes[fixed].any()
    got = set(np.flatnonzero(keyframes).tolist())
    assert got == oracle.even_keyframes(frames, set(fixed), count, offset)


@PROPERTY
@given(st.integers(1, 100), st.data())
def test_even_keyframes_are_even(frames, data):
    count = data.draw(st.integers(1, frames))
    at = np.flatnonzero(even_keyframes(frames, [], count, 0))
    gaps = np.diff([*at, at[0] + frames])
    assert set(gaps.tolist()) <= {frames // count, -(-frames // count)}


def test_even_count_fills_the_budget_beside_window_and_anchors():
    assert even_count(frames=81, budget=21, window=3, n_fixed=1) == 13
    assert even_count(frames=21, budget=21, window=3, n_fixed=1) == 20
    assert even_count(frames=81, budget=5, window=3, n_fixed=1) == 0


@pytest.mark.parametrize(
    ("horizon", "scale", "n_first", "budget"),
    [(21, 1.0, 1, 21), (21, 0.5, 1, 10), (21, 2.0, 1, 42), (5, 0.1, 4, 5)],
)
def test_attention_budget(horizon, scale, n_first, budget):
    assert attention_budget(horizon, scale, n_first) == budget


def test_errors():
    with refuses(LVSAError, "horizon", 0, 1):
        attention_budget(0, 1.0, 1)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with refuses(LVSAError, "scale", scale, 1.0):
            attention_budget(21, scale, 1)
    with refuses(LVSAError, "interval", 0, 1):
        published_keyframes(9, 0, 0)
    with refuses(LVSAError, 4, 3):
        even_keyframes(5, [0, 1], 4, 0)
