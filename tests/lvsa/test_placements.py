"""LVSA's own patterns: known values, and whole matrices against a definition in loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.keyframes import PLACEMENTS, even, published
from lvsa.pattern import MOST_FRAMES
from tests.support import oracle
from tests.support.errors import refuses
from tests.support.patterns import as_sets, placed

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)
BOTH = pytest.mark.parametrize("make", PLACEMENTS.values(), ids=PLACEMENTS)
SOME_OFFSETS = (0, 1, -1)


@settings(max_examples=160, deadline=None, derandomize=True)
@given(placed())
def test_equals_the_definition_at_every_offset(case):
    pattern, T = case.pattern, case.frames
    assert pattern.attended.shape == (len(case.sets), T, T)
    assert [as_sets(matrix) for matrix in pattern.attended] == case.sets


@PROPERTY
@given(placed(most_frames=40))
def test_every_frame_attends_itself_and_the_fixed_anchors(case):
    pattern = case.pattern
    attended = np.asarray(pattern.attended)
    assert attended.diagonal(axis1=1, axis2=2).all()
    assert {*pattern.fixed_anchors} == case.fixed
    assert attended[:, :, [*case.fixed]].all()


@PROPERTY
@given(placed(most_frames=40))
def test_keyframes_are_anchors(case):
    for offset, keyframes in enumerate(case.keyframes):
        assert keyframes <= {*np.flatnonzero(case.pattern.anchors[offset])}


@pytest.mark.parametrize(
    ("frames", "horizon", "interval", "attended"),
    [(81, 21, 6, 21), (121, 21, 9, 21), (49, 33, 2, 32), (65, 33, 3, 29)],
)
def test_published_known_values(frames, horizon, interval, attended):
    pattern = published(frames, horizon=horizon, window=3, n_first=1)
    assert pattern.parameters["interval"] == interval
    assert set(pattern.frames_attended.flatten().tolist()) == {attended}
    assert pattern == published(frames, interval=interval)


@BOTH
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
    assert even(41, interval=4, n_first=1).anchors.sum() == 1 + 10
    assert even(3, interval=4, n_first=3) == even(3, interval=1, n_first=3)


@PROPERTY
@given(placed(most_frames=40))
def test_rotation_has_its_period_and_reaches_every_frame(case):
    pattern, rotates = case.pattern, case.options["rotate"]
    period = pattern.n_offsets
    assert period == (pattern.parameters["interval"] if rotates else 1)
    offsets = [pattern.offset(step) for step in range(2 * period + 1)]
    assert offsets == [step % period for step in range(2 * period + 1)]
    if rotates and case.keyframes[0]:
        reached = set().union(case.fixed, *case.keyframes)
        assert reached == {*range(case.frames)}, "each is an anchor at some step of a period"
        assert {*np.flatnonzero(pattern.anchors.any(0))} == reached


def test_rotation_changes_the_matrix_each_step():
    pattern = published(40, interval=5, window=1, rotate=True)
    for a, b in itertools.combinations(pattern.attended, 2):
        assert not np.array_equal(a, b)


def test_digest_changes_with_each_option_that_changes_the_matrix():
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


@BOTH
def test_a_thousand_frames_at_all_offsets(make):
    pattern = make(1000, horizon=21, rotate=True)
    sets = oracle.placed(make.__name__, 1000, horizon=21, rotate=True, only=SOME_OFFSETS)
    assert pattern.attended.shape == (pattern.parameters["interval"], 1000, 1000)
    assert pattern.n_offsets > 50
    for offset, expected in zip(SOME_OFFSETS, sets, strict=True):
        assert as_sets(pattern.attended[offset]) == expected
    if make is even:
        assert set(pattern.frames_attended.flatten().tolist()) == {21}


@BOTH
def test_the_record_and_the_description_say_what_was_made(make):
    pattern = make(41, horizon=13, window=2, n_first=2, rotate=True, condition_frames=(40, 7, 7))
    parameters = pattern.parameters
    assert parameters["keyframe_placement"] == make.__name__
    assert parameters["interval"] == pattern.n_offsets
    assert (parameters["window"], parameters["first_frames"]) == (2, 2)
    assert parameters["condition_frames"] == [7, 40]
    assert pattern.fixed_anchors == (0, 1, 7, 40)
    for value in (2, 7, 40, pattern.n_offsets):
        assert str(value) in pattern.description
    with pytest.raises(TypeError):
        parameters["window"] = 3


@BOTH
@pytest.mark.parametrize(
    ("frames", "options", "values"),
    [
        (0, {}, ("frames", 0, 1)),
        (-3, {}, ("frames", -3, 1)),
        (MOST_FRAMES + 1, {}, (MOST_FRAMES + 1, MOST_FRAMES)),
        (10**9, {}, (10**9, MOST_FRAMES)),
        (5, {"window": -1}, ("window", -1, 0)),
        (5, {"window": MOST_FRAMES + 1}, ("window", MOST_FRAMES + 1, MOST_FRAMES)),
        (5, {"n_first": -2}, ("n_first", -2, 0)),
        (5, {"n_first": 10**9}, ("n_first", 10**9, MOST_FRAMES)),
        (5, {"interval": 0}, ("interval", 0, 1)),
        (5, {"interval": 10**9}, ("interval", 10**9, MOST_FRAMES)),
        (5, {"condition_frames": (2, 5, -1)}, ("condition frames", [5, -1], 0, 4)),
        (5, {"interval": None, "horizon": 0}, ("horizon", 0, 1)),
        (5, {"interval": None, "horizon": 3, "scale": 0.0}, ("scale", 0.0, 1.0)),
    ],
)
def test_options_out_of_range(make, frames, options, values):
    with refuses(LVSAError, *values):
        make(frames, **{"interval": 2, **options})


@BOTH
@pytest.mark.parametrize("both", [{}, {"interval": 3, "horizon": 7}])
def test_either_an_interval_or_a_horizon(make, both):
    with refuses(LVSAError, "interval", "horizon"):
        make(9, **both)


@BOTH
def test_an_unknown_option_names_the_known_ones(make):
    with refuses(TypeError, "widow", "window", "condition_frames"):
        make(9, interval=3, widow=2)
