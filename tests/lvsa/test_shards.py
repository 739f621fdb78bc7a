"""The cut of the sequence: intervals, frames and the message where it does not divide."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvsa.errors import DivisibilityError, LVSAError
from lvsa.shards import FrameGrid, Shards, divisibility_message
from tests.lvsa.test_pattern import patterns

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def world_sizes(tokens, most=16):
    return [n for n in range(1, most + 1) if tokens % n == 0]


@st.composite
def cuts(draw):
    """A pattern, and a grid of its frames that divides among some ranks, with cuts in frames."""
    pattern = draw(patterns())
    grid = FrameGrid(pattern.frames, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    world = draw(st.sampled_from(world_sizes(grid.tokens)))
    return pattern, Shards(grid, world)


@PROPERTY
@given(cuts())
def test_intervals_partition_the_sequence(cut):
    _, shards = cut
    intervals = [shards.token_range(rank) for rank in range(shards.world)]
    assert intervals[0][0] == 0
    assert intervals[-1][1] == shards.grid.tokens
    assert all(a[1] == b[0] for a, b in itertools.pairwise(intervals))
    assert {stop - start for start, stop in intervals} == {shards.local_tokens}


@PROPERTY
@given(cuts())
def test_frames_needed_and_held_by_brute_force(cut):
    pattern, shards = cut
    P = shards.grid.tokens_per_frame
    matrix = pattern.attended[-1]
    for rank in range(shards.world):
        tokens = range(*shards.token_range(rank))
        frames = {token // P for token in tokens}
        first, last = shards.frame_range(rank)
        assert frames == set(range(first, last))
        needed = {g for f in frames for g in range(pattern.frames) if matrix[f, g]}
        got = shards.frames_needed(rank, matrix)
        assert set(np.flatnonzero(got).tolist()) == needed
        held = [sum(token // P == f for token in tokens) for f in range(pattern.frames)]
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
    with pytest.raises(DivisibilityError) as caught:
        Shards(grid, world)
    head, *lines = str(caught.value).splitlines()
    left_over = grid.tokens % world
    assert head.startswith(
        f"{frames} latent frames × {rows * columns} tokens per frame = {grid.tokens} tokens do not "
        f"divide by {world} ranks ({left_over} left over)"
    )
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


def test_grid_errors():
    with pytest.raises(LVSAError, match=r"a grid of 3 × 0 × 2 tokens holds nothing; .* at least 1"):
        FrameGrid(3, 0, 2)
    with pytest.raises(LVSAError, match="world size is 0; it must be at least 1"):
        Shards(FrameGrid(2, 2, 2), 0)
    shards = Shards(FrameGrid(2, 2, 2), 4)
    for rank in (-1, 4):
        with pytest.raises(LVSAError, match=f"rank is {rank}; allowed: 0 … 3"):
            shards.token_range(rank)


def test_video_frames():
    grid = FrameGrid(21, 1, 1, temporal_factor=4)
    assert [grid.video_frames(t) for t in (1, 2, 21)] == [1, 5, 81]
