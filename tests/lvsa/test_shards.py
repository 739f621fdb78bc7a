"""The cut of the sequence: token ranges, frames and the message where it does not divide."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvsa.errors import DivisibilityError, LVSAError
from lvsa.shards import FrameGrid, Shards, divisibility_message
from tests.support.cuts import cuts
from tests.support.errors import refuses

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


@PROPERTY
@given(cuts())
def test_ranges_partition_the_sequence(cut):
    shards = cut.shards
    ranges = [shards.token_range(rank) for rank in range(shards.world)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == shards.grid.tokens
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert {stop - start for start, stop in ranges} == {shards.local_tokens}


@PROPERTY
@given(cuts())
def test_frames_needed_and_held_by_brute_force(cut):
    shards, T = cut.shards, cut.case.frames
    P = shards.grid.tokens_per_frame
    for rank in range(shards.world):
        tokens = range(*shards.token_range(rank))
        frames = {token // P for token in tokens}
        first, last = shards.frame_range(rank)
        assert frames == set(range(first, last))
        needed = set().union(*(cut.case.sets[cut.offset][f] for f in frames))
        got = shards.frames_needed(rank, cut.matrix)
        assert set(np.flatnonzero(got).tolist()) == needed
        held = [sum(token // P == f for token in tokens) for f in range(T)]
        assert shards.tokens_held(rank).tolist() == held


@PROPERTY
@given(
    frames=st.integers(1, 60),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    world=st.integers(2, 24),
    pixels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    factor=st.sampled_from([1, 4, 8]),
)
def test_every_setting_that_the_message_names_divides(frames, rows, columns, world, pixels, factor):
    grid = FrameGrid(frames, rows, columns, *pixels, factor)
    assume(grid.tokens % world)
    given_values = frames, rows * columns, grid.tokens, world, grid.tokens % world
    with refuses(DivisibilityError, *given_values) as caught:
        Shards(grid, world)
    _, *lines = str(caught.value).splitlines()
    named = {line.split(":")[0].strip(): line.split(":")[1] for line in lines}

    counts = re.findall(r"(\d+) \((\d+) latent\)", named["frames"])
    for video, latent in counts:
        assert int(latent) * rows * columns % world == 0
        assert int(video) == (int(latent) - 1) * factor + 1
    # Nearest: nothing between the two that are named divides.
    latents = [int(latent) for _, latent in counts]
    low = max([t for t in latents if t < frames], default=0)
    high = min(t for t in latents if t > frames)
    between = [t for t in range(low + 1, high) if t * rows * columns % world == 0]
    assert not between

    distances = []
    for height, width in re.findall(r"(\d+) × (\d+)", named.get("sizes (height × width)", "")):
        new_rows, rest_rows = divmod(int(height), pixels[0])
        new_columns, rest_columns = divmod(int(width), pixels[1])
        assert rest_rows == rest_columns == 0
        assert frames * new_rows * new_columns % world == 0

        distances.append(abs(new_rows - rows) + abs(new_columns - columns))
    possible = [
        abs(r - rows) + abs(c - columns)
        for r in range(1, rows + 9)
        for c in range(1, columns + 9)
        if abs(r - rows) <= 8 and abs(c - columns) <= 8 and frames * r * c % world == 0
    ]
    assert distances == sorted(possible)[:3]

    worlds = [int(n) for n in re.findall(r"\d+", named["world sizes"])]
    assert worlds
    assert all(grid.tokens % n == 0 for n in worlds)
    nearest = min(
        (n for n in range(1, 2 * world + 1) if grid.tokens % n == 0), key=lambda n: abs(n - world)
    )
    assert abs(nearest - world) == min(abs(n - world) for n in worlds)


def test_the_message_for_a_known_case():
    """81 frames of Wan 480p on 16 ranks: 1560 = 2^3·195, so the frames must be even."""
    grid = FrameGrid(81, 30, 52, 16, 16, 4)
    assert divisibility_message(grid, 16).splitlines() == [
        "81 latent frames × 1560 tokens per frame = 126360 tokens do not divide by 16 ranks "
        "(8 left over). Nearest settings that do:",
        "  frames: 317 (80 latent), 325 (82 latent)",
        "  sizes (height × width): 448 × 832, 512 × 832, 512 × 816",
        "  world sizes: 12, 13, 15, 18",
    ]


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 1, 1), (1, 1, -1)])
def test_grids_that_hold_nothing(sizes):
    with refuses(LVSAError, *sizes, 1):
        FrameGrid(*sizes)


def test_world_sizes_and_ranks_out_of_range():
    with refuses(LVSAError, 0, 1):
        Shards(FrameGrid(2, 2, 2), 0)
    shards = Shards(FrameGrid(2, 2, 2), 4)
    for rank in (-1, 4):
        with refuses(LVSAError, rank, 0, 3):
            shards.token_range(rank)


def test_video_frames():
    grid = FrameGrid(21, 1, 1, temporal_factor=4)
    assert [grid.video_frames(t) for t in (1, 2, 21)] == [1, 5, 81]
