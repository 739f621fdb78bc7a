"""Patterns for property tests, drawn together with what they must be by the definition."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lvsa.keyframes import PLACEMENTS
from lvsa.pattern import Pattern
from tests.support import oracle


def as_sets(matrix) -> list[set[int]]:
    """The frames that each frame attends."""
    return [set(np.flatnonzero(row).tolist()) for row in np.asarray(matrix)]


@dataclass(frozen=True)
class Placed:
    """A pattern of one of LVSA's placements: what it was asked for, what it is, what it must be."""

    placement: str
    frames: int
    options: Mapping[str, Any]

    @cached_property
    def pattern(self) -> Pattern:
        return PLACEMENTS[self.placement](self.frames, **self.options)

    @cached_property
    def sets(self) -> list[list[set[int]]]:
        """A(f) of every frame at every offset, from the definition."""
        return oracle.placed(self.placement, self.frames, **self.options)

    @property
    def keyframes(self) -> list[set[int]]:
        """Keyframes at every offset, from the definition."""
        return oracle.keyframes(self.placement, self.frames, **self.options)

    @property
    def fixed(self) -> set[int]:
        """Anchors that do not move."""
        first = range(min(self.options["n_first"], self.frames))
        return {*first, *self.options["condition_frames"]}


@dataclass(frozen=True)
class Own:
    """A pattern from a matrix: any frame attends any frames, if at least one."""

    matrices: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def pattern(self) -> Pattern:
        return Pattern.of(self.matrices)

    @cached_property
    def sets(self) -> list[list[set[int]]]:
        return [[{g for g, on in enumerate(row) if on} for row in m] for m in self.matrices]

    @property
    def frames(self) -> int:
        return len(self.matrices[0])


@st.composite
def placed(draw, most_frames=24):
    """Any pattern of either placement: dense, sparse, rotating, with conditioning frames."""
    frames = draw(st.integers(1, most_frames))
    options = {
        "window": draw(st.integers(0, 4)),
        "n_first": draw(st.integers(0, 3)),
        "rotate": draw(st.booleans()),
        "expand_window": draw(st.booleans()),
        "condition_frames": tuple(draw(st.sets(st.integers(0, frames - 1), max_size=2))),
    }
    if draw(st.booleans()):
        options["interval"] = draw(st.integers(1, frames + 2))
    else:
        options["horizon"] = draw(st.integers(1, frames + 2))
        options["scale"] = draw(st.sampled_from([0.5, 1.0, 2.0]))
    return Placed(draw(st.sampled_from([*PLACEMENTS])), frames, options)


@st.composite
def own(draw, most_frames=10, least_frames=1):
    """Any matrix at all, with gaps that no placement has, at one offset or a few."""
    frames = draw(st.integers(least_frames, most_frames))
    density = draw(st.sampled_from([0.1, 0.3, 0.7]))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    matrices = random.random((draw(st.integers(1, 3)), frames, frames)) < density
    # Where a row came out empty it attends one frame, itself or another.
    offset, row = np.nonzero(~matrices.any(2))
    matrices[offset, row, random.integers(0, frames, len(row))] = True
    return Own(tuple(tuple(tuple(row) for row in m) for m in matrices.astype(int).tolist()))


def patterns(most_frames=24):
    """Patterns of the placements, and of one's own."""
    return st.one_of(placed(most_frames), own(min(most_frames, 10)))
