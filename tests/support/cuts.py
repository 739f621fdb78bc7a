"""Patterns and grids cut among ranks, drawn for property tests."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from hypothesis import strategies as st

from lvsa.pattern import Bools, Pattern
from lvsa.shards import FrameGrid, Shards
from tests.support.oracle import token_mask
from tests.support.patterns import Own, Placed, patterns


@dataclass(frozen=True)
class Cut:
    """A pattern at one of its offsets, and a cut of its tokens among ranks."""

    case: Placed | Own
    offset: int
    shards: Shards

    @property
    def pattern(self) -> Pattern:
        return self.case.pattern

    @property
    def matrix(self) -> Bools:
        """[T, T] as the package makes it."""
        return self.pattern.attended[self.offset]

    @cached_property
    def mask(self) -> np.ndarray:
        """[S, S] from the definition, in loops."""
        return token_mask(self.case.sets[self.offset], self.shards.grid.tokens_per_frame).numpy()

    def keys_of(self, rank: int) -> np.ndarray:
        """[S] which tokens some query of a rank attends, from the definition."""
        return self.mask[slice(*self.shards.token_range(rank))].any(0)


@st.composite
def cuts(draw, least_ranks=1, most_ranks=16, most_frames=14):
    """Any number of ranks, mostly with cuts inside frames; a frame has the tokens that it takes."""
    case = draw(patterns(most_frames))
    offset = draw(st.integers(0, case.pattern.n_offsets - 1))
    world = draw(st.integers(least_ranks, most_ranks))
    step = world // math.gcd(case.frames, world)
    P = step * draw(st.integers(1, max(1, 6 // step)))
    rows = draw(st.sampled_from([r for r in (1, 2, 3) if P % r == 0]))
    return Cut(case, offset, Shards(FrameGrid(case.frames, rows, P // rows), world))
