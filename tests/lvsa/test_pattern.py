"""The pattern: known values, and the whole matrix against a definition written out in loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.keyframes import even, published
from lvsa.pattern import Pattern, dense
from tests.support.oracle import attended_set, published_keyframes

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def patterns(draw, most_frames=24):
    """Any pattern of either placement: dense, sparse, rotating, with conditioning frames."""
    frames = draw(st.integers(1, most_frames))
    common = {
        "window": draw(st.integers(0, 4)),
        "n_first": draw(st.integers(0, 3)),
        "rotate": draw(st.booleans()),
        "expand_window": draw(st.booleans()),
        "condition_frames": tuple(draw(st.sets(st.integers(0, frames - 1), max_size=2))),
        "interval": draw(st.integers(1, frames + 2)),
    }
    make = draw(st.sampled_from([published, even]))
    return make(frames, **common)


def even_oracle(T, fixed, count, offset):
    free = [f for f in range(T) if f not in fixed]
    return {free[(i * len(free) // count + offset) % len(free)] for i in range(count)}


def oracle_sets(pattern, offset):
    """A(f) of every frame, from the definition."""
    T = pattern.frames
    fixed = set(range(min(pattern.n_first, T))) | set(pattern.condition_frames)
    if pattern.placement == "even":
        keyframes = even_oracle(T, fixed, pattern.keyframes, offset)
    else:
        keyframes = published_keyframes(T, pattern.interval, offset)
    anchors = keyframes | set(pattern.condition_frames)
    return [
        attended_set(T, pattern.window, pattern.n_first, anchors, f, pattern.expand_window)
        for f in range(T)
    ]


def as_sets(matrix):
    return [set(np.flatnonzero(row).tolist()) for row in matrix]


@PROPERTY
@given(patterns())
def test_equals_the_definition_at_every_offset(pattern):
    assert pattern.attended.shape == (pattern.n_offsets, pattern.frames, pattern.frames)
    for offset, matrix in enumerate(pattern.attended):
        assert as_sets(matrix) == oracle_sets(pattern, offset)


@PROPERTY
@given(patterns(most_frames=40))
def test_every_frame_attends_itself_and_the_fixed_anchors(pattern):
    assert pattern.attended.diagonal(axis1=1, axis2=2).all()
    anchors = [*range(min(pattern.n_first, pattern.frames)), *pattern.condition_frames]
    assert pattern.attended[:, :, anchors].all()
    assert pattern.anchors[:, anchors].all()


@PROPERTY
@given(patterns(most_frames=40))
def test_counts_are_those_of_the_matrix(pattern):
    pairs = [len(s) for matrix in pattern.attended for s in as_sets(matrix)]
    assert pattern.frames_attended.flatten().tolist() == pairs
    assert pattern.density == pytest.approx(sum(pairs) / pattern.attended.size)
    assert pattern.is_dense == (sum(pairs) == pattern.attended.size)


@pytest.mark.parametrize(
    ("frames", "horizon", "interval", "attended"),
    [(81, 21, 6, 21), (121, 21, 9, 21), (49, 33, 2, 32), (65, 33, 3, 29)],
)
def test_published_known_values(frames, horizon, interval, attended):
    pattern = published(frames, horizon=horizon, window=3, n_first=1)
    assert pattern.interval == interval
    assert set(pattern.frames_attended.flatten().tolist()) == {attended}


@pytest.mark.parametrize("make", [published, even])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("horizon", [13, 21, 31, 33])
def test_dense_at_and_below_the_horizon_and_sparse_above(make, rotate, horizon):
    for frames in (1, 2, horizon - 1, horizon):
        assert make(frames, horizon=horizon, rotate=rotate).is_dense
    assert not make(2 * horizon, horizon=horizon, rotate=rotate).is_dense


@pytest.mark.parametrize("horizon", [13, 21, 33])
@pytest.mark.parametrize("rotate", [False, True])
def test_even_meets_its_budget_at_every_length_and_offset(horizon, rotate):
    for frames in range(1, 160):
        pattern = even(frames, horizon=horizon, rotate=rotate)
        assert set(pattern.frames_attended.flatten().tolist()) == {min(frames, horizon)}


@PROPERTY
@given(
    frames=st.integers(1, 120),
    window=st.integers(0, 5),
    n_first=st.integers(0, 4),
    extra=st.integers(0, 20),
    data=st.data(),
)
def test_even_meets_any_budget_that_holds_a_window(frames, window, n_first, extra, data):
    condition = data.draw(st.sets(st.integers(0, frames - 1), max_size=3))
    n_fixed = len({*range(min(n_first, frames)), *condition})
    horizon = max(n_fixed, n_first) + 2 * window + 1 + extra
    pattern = even(
        frames,
        horizon=horizon,
        window=window,
        n_first=n_first,
        condition_frames=tuple(condition),
        rotate=True,
    )
    assert set(pattern.frames_attended.flatten().tolist()) == {min(frames, horizon)}


def test_published_misses_its_budget_where_even_does_not():
    """The reason for the second placement."""
    assert published(65, horizon=33).frames_attended.max() == 29
    assert even(65, horizon=33).frames_attended.max() == 33


def test_even_by_interval_has_a_keyframe_for_each():
    pattern = even(41, interval=4, n_first=1)
    assert pattern.keyframes == 10
    assert pattern.anchors.sum() == 11
    assert even(3, interval=4, n_first=3).keyframes == 0


@PROPERTY
@given(patterns(most_frames=40))
def test_rotation_has_its_period_and_reaches_every_frame(pattern):
    period = pattern.n_offsets
    assert period == (pattern.interval if pattern.rotate else 1)
    offsets = [pattern.offset(step) for step in range(2 * period + 1)]
    assert offsets == [step % period for step in range(2 * period + 1)]
    if pattern.rotate and (pattern.placement == "published" or pattern.keyframes):
        assert pattern.anchors.any(0).all(), "each frame is an anchor at some step of a period"


def test_rotation_changes_the_matrix_each_step():
    pattern = published(40, interval=5, window=1, rotate=True)
    for a, b in itertools.combinations(pattern.attended, 2):
        assert not np.array_equal(a, b)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(patterns(most_frames=6), patterns(most_frames=6))
def test_digest_is_equal_only_for_equal_matrices(a, b):
    assert (a.digest == b.digest) == np.array_equal(a.attended, b.attended)


def test_digest_tells_matrices_of_equal_bits_and_other_shape_apart():
    four_offsets_of_one_frame = Pattern(frames=1, interval=4, rotate=True)
    two_frames = dense(2)
    assert four_offsets_of_one_frame.attended.size == two_frames.attended.size
    assert four_offsets_of_one_frame.digest != two_frames.digest


def test_digest_changes_with_each_setting_that_changes_the_matrix():
    base = {"interval": 6, "window": 2, "n_first": 1}
    changes = [
        {},
        {"interval": 7},
        {"window": 3},
        {"n_first": 2},
        {"rotate": True},
        {"expand_window": False},
        {"condition_frames": (4,)},
    ]
    digests = {published(40, **{**base, **change}).digest for change in changes}
    assert len(digests) == len(changes)
    assert published(40, **base).digest == published(40, **base).digest


@pytest.mark.parametrize("make", [published, even])
def test_a_thousand_frames_at_all_offsets(make):
    pattern = make(1000, horizon=21, rotate=True)
    assert pattern.attended.shape == (pattern.interval, 1000, 1000)
    assert pattern.interval > 50
    for offset in (0, 1, pattern.interval // 2, pattern.interval - 1):
        sets = oracle_sets(pattern, offset)
        assert as_sets(pattern.attended[offset]) == sets
    if make is even:
        assert set(pattern.frames_attended.flatten().tolist()) == {21}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "frames is 0 latent frames; it must be at least 1"),
        ({"frames": 5, "window": -1}, "window is -1 latent frames; it must be at least 0"),
        ({"frames": 5, "n_first": -2}, "n_first is -2 latent frames; it must be at least 0"),
        ({"frames": 5, "interval": 0}, "interval is 0 latent frames; it must be at least 1"),
        (
            {"frames": 5, "placement": "odd"},
            "unknown keyframe placement 'odd'; known: published, even",
        ),
        (
            {"frames": 5, "condition_frames": (2, 5, -1)},
            r"condition frames \[5, -1\] are not latent frames of this video; allowed: 0 … 4",
        ),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(LVSAError, match=message):
        Pattern(**arguments)


@pytest.mark.parametrize("make", [published, even])
@pytest.mark.parametrize("both", [{}, {"interval": 3, "horizon": 7}])
def test_either_an_interval_or_a_reference(make, both):
    with pytest.raises(LVSAError, match="give either an interval or a training horizon, in latent"):
        make(9, **both)


def test_interval_of_the_even_schedule_out_of_range():
    with pytest.raises(LVSAError, match="interval is 0 latent frames; it must be at least 1"):
        even(9, interval=0)


def test_steps_are_not_negative():
    with pytest.raises(LVSAError, match="denoising step is -1; steps are counted from 0"):
        dense(3).offset(-1)
