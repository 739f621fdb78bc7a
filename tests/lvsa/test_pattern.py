"""The pattern is its matrix: what follows from it, patterns of one's own, and `|` and `&`."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.keyframes import published
from lvsa.pattern import MOST_FRAMES, FrameMatrices, Pattern, dense
from tests.support.errors import refuses
from tests.support.patterns import as_sets, own, patterns

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)
EYE = np.eye(4, dtype=bool)


@PROPERTY
@given(patterns(most_frames=40))
def test_counts_are_those_of_the_matrix(case):
    pattern, T = case.pattern, case.frames
    pairs = [len(attended) for sets in case.sets for attended in sets]
    assert pattern.frames_attended.shape == (pattern.n_offsets, T)
    assert pattern.frames_attended.flatten().tolist() == pairs
    assert pattern.density == pytest.approx(sum(pairs) / (len(pairs) * T))
    assert pattern.is_dense == (sum(pairs) == len(pairs) * T)
    assert pattern.frames == T


@PROPERTY
@given(patterns())
def test_anchors_are_the_frames_that_every_query_attends(case):
    for anchors, sets in zip(case.pattern.anchors, case.sets, strict=True):
        assert set(np.flatnonzero(anchors).tolist()) == set.intersection(*sets)


@PROPERTY
@given(patterns())
def test_a_pattern_is_its_matrix_however_it_was_made(case):
    matrix = np.asarray(case.pattern.attended)
    again = Pattern.of(matrix, fixed_anchors=case.pattern.fixed_anchors, description="again")
    assert again == case.pattern
    assert hash(again) == hash(case.pattern)
    assert again.fixed_anchors == case.pattern.fixed_anchors
    assert again.description == "again"
    assert np.array_equal(again.attended, matrix)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(patterns(most_frames=5), patterns(most_frames=5))
def test_digest_is_equal_only_for_equal_matrices(a, b):
    equal = a.sets == b.sets
    assert (a.pattern.digest == b.pattern.digest) == equal
    assert (a.pattern == b.pattern) == equal


def test_digest_tells_matrices_of_equal_bits_and_other_shape_apart():
    four_offsets_of_one_frame = Pattern.of(np.ones((4, 1, 1)))
    two_frames = dense(2)
    assert np.size(four_offsets_of_one_frame.attended) == np.size(two_frames.attended)
    assert four_offsets_of_one_frame.digest != two_frames.digest


def test_identity_names_digest_length_and_description():
    pattern = Pattern.of(EYE, description="each frame by itself")
    for value in (pattern.digest, 4, "each frame by itself"):
        assert str(value) in pattern.identity


def test_dense():
    assert as_sets(dense(3).attended[0]) == [{0, 1, 2}] * 3
    assert dense(3).is_dense
    assert dense(3).n_offsets == 1


def test_steps_are_not_negative():
    with refuses(LVSAError, -1, 0):
        dense(3).offset(-1)


# Patterns of one's own.


@pytest.mark.parametrize("kind", [list, np.array, lambda m: np.array(m, dtype=np.uint8)])
def test_of_takes_matrices_of_any_kind(kind):
    rows = [[1, 0, 1], [0, 1, 0], [1, 1, 1]]
    one, two = Pattern.of(kind(rows)), Pattern.of(kind([rows, rows]))
    assert one.attended.shape == (1, 3, 3)
    assert two.attended.shape == (2, 3, 3)
    for matrix in (*one.attended, *two.attended):
        assert matrix.dtype == np.bool_
        assert as_sets(matrix) == [{0, 2}, {1}, {0, 1, 2}]


def test_of_keeps_a_copy():
    matrix = EYE.copy()
    pattern = Pattern.of(matrix)
    matrix[:] = True
    assert as_sets(pattern.attended[0]) == [{0}, {1}, {2}, {3}]
    with pytest.raises(ValueError, match="read-only"):
        pattern.attended[0][0, 1] = True


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 3, 4), (0, 0), (0, 4, 4), (1, 1, 4, 4)])
def test_of_refuses_other_shapes(shape):
    with refuses(LVSAError, list(shape)):
        Pattern.of(np.ones(shape))


def test_of_refuses_a_frame_that_attends_nothing():
    matrices = np.stack([EYE] * 3)
    matrices[2, 1] = False
    with refuses(LVSAError, "frame 1", "offset 2"):
        Pattern.of(matrices)


@pytest.mark.parametrize("anchors", [(1,), (0, 3), (0, 4), (-1,), (-4,)])
def test_of_refuses_anchors_that_are_none(anchors):
    matrix = EYE.copy()
    matrix[:, 0] = True
    Pattern.of(matrix, fixed_anchors=(0,))
    with refuses(LVSAError, [f for f in anchors if f != 0]):
        Pattern.of(matrix, fixed_anchors=anchors)


def test_anchors_must_be_attended_at_every_offset():
    matrices = np.stack([EYE, EYE])
    matrices[0, :, 2] = True
    with refuses(LVSAError, [2]):
        Pattern.of(matrices, fixed_anchors=(2,))


@pytest.mark.parametrize("frames", [0, -1, MOST_FRAMES + 1, 10**9])
def test_lengths_that_no_pattern_has(frames):
    with refuses(LVSAError, frames, 1 if frames < 1 else MOST_FRAMES):
        dense(frames)


# Combinations.


def combined(word, a, b):
    """[offset][frame] → set, in loops."""
    return [
        [
            (p | q) if word == "or" else (p & q)
            for p, q in zip(a.sets[o % len(a.sets)], b.sets[o % len(b.sets)], strict=True)
        ]
        for o in range(math.lcm(len(a.sets), len(b.sets)))
    ]


@PROPERTY
@given(st.data())
def test_or_and_and(data):
    a = data.draw(patterns(most_frames=8))
    b = data.draw(own(least_frames=a.frames, most_frames=a.frames))
    either = a.pattern | b.pattern
    assert [as_sets(matrix) for matrix in either.attended] == combined("or", a, b)
    assert either == b.pattern | a.pattern
    assert {*a.pattern.fixed_anchors} <= {*either.fixed_anchors}
    assert a.pattern.description in either.description
    assert b.pattern.description in either.description
    expected = combined("and", a, b)
    if all(attended for sets in expected for attended in sets):
        both = a.pattern & b.pattern
        assert [as_sets(matrix) for matrix in both.attended] == expected
        for anchor in both.fixed_anchors:
            assert all(anchor in attended for sets in expected for attended in sets)


@pytest.mark.parametrize(("m", "n", "expected"), [(2, 3, 6), (4, 6, 12), (1, 5, 5), (3, 3, 3)])
def test_offsets_of_a_combination_are_their_least_common_multiple(m, n, expected):
    a, b = (published(12, interval=i, window=0, rotate=i > 1) for i in (m, n))
    assert (a | b).n_offsets == (a & b).n_offsets == expected


def test_combinations_that_take_too_long_to_come_round_are_refused():
    a, b = (published(400, interval=interval, rotate=True) for interval in (101, 103))
    with refuses(LVSAError, 101, 103, 101 * 103, MOST_FRAMES):
        a | b
    assert (a | published(400, interval=103)).n_offsets == 101


def test_a_combination_keeps_the_anchors_that_hold():
    first = Pattern.of(EYE | (np.arange(4) == 0), fixed_anchors=(0,))
    last = Pattern.of(EYE | (np.arange(4) >= 3) | (np.arange(4) == 0), fixed_anchors=(3,))
    assert (first | last).fixed_anchors == (0, 3)
    assert (first & last).fixed_anchors == (0,)
    assert (first & dense(4)) == first
    assert (first & dense(4)).fixed_anchors == (0,)
    assert (first | dense(4)).is_dense


def test_patterns_of_different_lengths_are_not_combined():
    for combine in (Pattern.__or__, Pattern.__and__):
        with refuses(LVSAError, 4, 5):
            combine(dense(4), dense(5))


def test_a_combination_in_which_a_frame_attends_nothing_is_refused():
    other = Pattern.of(~EYE)
    with refuses(LVSAError, "frame 0", "offset 0"):
        np.asarray((Pattern.of(EYE) & other).attended)


# The matrices are made when they are asked for.


class Counted:
    """Makes matrices of which the diagonal tells the offset, and counts."""

    def __init__(self, frames=3):
        self.made, self.frames = [], frames

    def __call__(self, offset):
        self.made.append(offset)
        return np.roll(np.eye(self.frames, dtype=bool), offset, axis=1)


def test_matrices_are_made_when_asked_for_and_the_last_is_kept():
    make = Counted()
    matrices = FrameMatrices(5, 3, make)
    assert len(matrices) == 5
    assert matrices.shape == (5, 3, 3)
    assert make.made == []
    first = matrices[1]
    assert as_sets(first) == [{1}, {2}, {0}]
    assert matrices[1] is first
    assert matrices[-4] is first
    assert make.made == [1]
    assert as_sets(matrices[-1]) == as_sets(make(4))
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = True


@pytest.mark.parametrize(
    "chosen", [slice(None), slice(2), slice(1, 4, 2), slice(None, None, -1), slice(7, 9)]
)
def test_slices_are_those_of_a_list(chosen):
    matrices = FrameMatrices(5, 3, Counted())
    got = [matrix.tolist() for matrix in matrices[chosen]]
    assert got == [matrix.tolist() for matrix in list(matrices)[chosen]]


@pytest.mark.parametrize("offset", [5, -6, 100])
def test_offsets_beyond_the_last_are_none(offset):
    with refuses(IndexError, offset, 5):
        FrameMatrices(5, 3, Counted())[offset]


def test_the_whole_array():
    make = Counted()
    matrices = FrameMatrices(4, 3, make)
    whole = np.asarray(matrices)
    assert make.made == [0, 1, 2, 3]
    assert whole.dtype == np.bool_
    assert whole.shape == matrices.shape
    for got, expected in zip(whole, matrices, strict=True):
        assert np.array_equal(got, expected)
    assert np.asarray(matrices, dtype=np.int64).sum() == 12
    assert [*map(as_sets, reversed(matrices))] == [*map(as_sets, whole[::-1])]


def test_ten_thousand_rotating_frames_are_made_one_matrix_at_a_time():
    """All of them together take 77 GB; one takes 100 MB."""
    tracemalloc.start()
    try:
        pattern = published(MOST_FRAMES, horizon=21, rotate=True)
        assert pattern.n_offsets > 700
        assert tracemalloc.get_traced_memory()[1] < 50e6
        for offset in (0, 1, pattern.n_offsets - 1):
            attended = pattern.attended[offset].sum(1)
            assert 20 <= attended.min() <= attended.max() <= 22
        assert tracemalloc.get_traced_memory()[1] < 800e6
    finally:
        tracemalloc.stop()
