"""Layouts: the tiles cover exactly the attended token pairs of a block, each of them once."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.layout import BlockLayout, Piece, Tile, build_layout, frame_runs, full_layout, pack
from tests.lvsa.test_pattern import as_sets
from tests.lvsa.test_shards import cuts
from tests.support.oracle import token_mask

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)


def covered(layout, n_keys):
    """[L, C] how often each (query, key) pair of the block is in a tile."""
    count = np.zeros((layout.n_queries, n_keys), dtype=int)
    for tile in layout.tiles:
        for start, stop in tile.keys:
            assert 0 <= start < stop <= n_keys
            count[tile.start : tile.stop, start:stop] += 1
    return count


@st.composite
def blocks(draw):
    """A cut, a rank, and pieces of the sequence anywhere in a buffer, with gaps between them."""
    pattern, shards = draw(cuts())
    S = shards.grid.tokens
    edges = sorted(draw(st.sets(st.integers(0, S), max_size=6)))
    intervals = list(itertools.pairwise(edges))
    chosen = [interval for interval in intervals if draw(st.booleans())]
    order = draw(st.permutations(chosen))
    pieces, position = [], 0
    for start, stop in order:
        position += draw(st.integers(0, 2))
        pieces.append(Piece(start, stop, position))
        position += stop - start
    rank = draw(st.integers(0, shards.world - 1))
    matrix = pattern.attended[draw(st.integers(0, pattern.n_offsets - 1))]
    if draw(st.booleans()):  # any matrix at all, with gaps that no pattern has
        generator = np.random.default_rng(draw(st.integers(0, 1000)))
        matrix = generator.random(matrix.shape) < draw(st.sampled_from([0.1, 0.3, 0.7]))
    return matrix, shards, rank, pieces, position


@PROPERTY
@given(blocks())
def test_tiles_cover_exactly_the_attended_pairs(block):
    matrix, shards, rank, pieces, size = block
    P = shards.grid.tokens_per_frame
    queries = shards.token_range(rank)
    layout = build_layout(queries, pieces, matrix, P)
    mask = token_mask(as_sets(matrix), P).numpy()
    expected = np.zeros((shards.local_tokens, size), dtype=int)
    for piece in pieces:
        part = mask[slice(*queries), piece.start : piece.stop]
        expected[:, piece.position : piece.position + piece.stop - piece.start] = part
    assert np.array_equal(covered(layout, size), expected)
    assert layout.pairs == expected.sum()
    assert layout.covers_all_queries == expected.any(1).all()


@PROPERTY
@given(blocks())
def test_tiles_are_in_order_and_neighbours_with_equal_keys_are_one(block):
    matrix, shards, rank, pieces, _ = block
    layout = build_layout(shards.token_range(rank), pieces, matrix, shards.grid.tokens_per_frame)
    for a, b in zip(layout.tiles, layout.tiles[1:], strict=False):
        assert a.stop <= b.start
        assert a.stop < b.start or a.keys != b.keys
    for tile in layout.tiles:
        for a, b in zip(tile.keys, tile.keys[1:], strict=False):
            assert a[1] != b[0], "touching ranges are one range"


@PROPERTY
@given(blocks())
def test_uniform_groups_hold_every_tile_once_by_shape(block):
    matrix, shards, rank, pieces, _ = block
    layout = build_layout(shards.token_range(rank), pieces, matrix, shards.grid.tokens_per_frame)
    grouped = [tile for group in layout.uniform_groups for tile in group]
    assert sorted(grouped) == sorted(layout.tiles)
    shapes = [{(tile.n_queries, tile.n_keys) for tile in group} for group in layout.uniform_groups]
    assert all(len(shape) == 1 for shape in shapes)
    assert len(set().union(*shapes)) == len(shapes)


@PROPERTY
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 5), st.data())
def test_frame_runs_are_the_tokens_of_the_chosen_frames(frames, P, data):
    S = len(frames) * P
    low = data.draw(st.integers(0, S))
    high = data.draw(st.integers(low, S))
    runs = frame_runs(np.array(frames), P, (low, high))
    tokens = [token for start, stop in runs for token in range(start, stop)]
    assert tokens == [token for token in range(low, high) if frames[token // P]]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs)), "neighbours are joined"


def test_equal_keys_are_not_joined_over_queries_that_attend_nothing():
    matrix = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=bool)
    layout = build_layout((0, 6), [Piece(0, 4, 0)], matrix, 2)
    assert layout.tiles == (Tile(0, 2, ((0, 4),)), Tile(4, 6, ((0, 4),)))


def test_pack_lays_intervals_one_behind_the_other():
    assert pack([(4, 7), (20, 21), (9, 11)]) == (Piece(4, 7, 0), Piece(20, 21, 3), Piece(9, 11, 4))


def test_full_layout():
    assert full_layout(3, 5) == BlockLayout((Tile(0, 3, ((0, 5),)),), 3)
    empty = full_layout(3, 0)
    assert empty.tiles == ()
    assert not empty.covers_all_queries


def test_a_dense_block_is_one_tile():
    layout = build_layout((3, 9), [Piece(0, 12, 0)], np.ones((4, 4), dtype=bool), 3)
    assert layout.tiles == (Tile(0, 6, ((0, 12),)),)
