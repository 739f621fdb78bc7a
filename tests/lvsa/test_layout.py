"""Layouts: the tiles cover exactly the attended token pairs of a block, each of them once."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.keyframes import published
from lvsa.layout import Piece, build_layout, frame_runs, full_layout, layout_of, pack
from lvsa.shards import FrameGrid, Shards
from lvsa.tiles import Tile, TileRun
from tests.support.cuts import cuts
from tests.support.layouts import layouts
from tests.support.oracle import token_mask
from tests.support.patterns import as_sets

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)


def covered(tiles, n_queries, n_keys):
    """[L, C] how often each (query, key) pair of the block is in a tile."""
    count = np.zeros((n_queries, n_keys), dtype=int)
    for tile in tiles:
        for start, stop in tile.keys:
            assert 0 <= start < stop <= n_keys
            count[tile.start : tile.stop, start:stop] += 1
    return count


@st.composite
def blocks(draw):
    """A cut, a rank, and pieces of the sequence anywhere in a buffer, with gaps between them."""
    cut = draw(cuts(most_frames=24))
    shards, matrix = cut.shards, cut.matrix
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
    if draw(st.booleans()):  # any matrix at all, also with frames that attend nothing
        generator = np.random.default_rng(draw(st.integers(0, 1000)))
        matrix = generator.random(matrix.shape) < draw(st.sampled_from([0.1, 0.3, 0.7]))
    return matrix, shards, rank, pieces, position


def built(block):
    matrix, shards, rank, pieces, _ = block
    return build_layout(shards.token_range(rank), pieces, matrix, shards.grid.tokens_per_frame)


@PROPERTY
@given(blocks())
def test_tiles_cover_exactly_the_attended_pairs(block):
    matrix, shards, rank, pieces, size = block
    layout = built(block)
    mask = token_mask(as_sets(matrix), shards.grid.tokens_per_frame).numpy()
    expected = np.zeros((shards.local_tokens, size), dtype=int)
    for piece in pieces:
        part = mask[slice(*shards.token_range(rank)), piece.start : piece.stop]
        expected[:, piece.position : piece.position + piece.stop - piece.start] = part
    assert layout.n_queries == shards.local_tokens
    assert np.array_equal(covered(layout.tiles, layout.n_queries, size), expected)
    assert layout.pairs == expected.sum()
    assert layout.covers_all_queries == expected.any(1).all()


@PROPERTY
@given(blocks())
def test_tiles_are_in_order_and_neighbors_with_equal_keys_are_one(block):
    layout = built(block)
    for a, b in itertools.pairwise(layout.tiles):
        assert a.stop <= b.start
        assert a.stop < b.start or a.keys != b.keys
    for tile in layout.tiles:
        for a, b in itertools.pairwise(tile.keys):
            assert a[1] != b[0], "touching ranges are one range"


ANY_LAYOUT = st.one_of(layouts(), blocks().map(lambda block: (built(block), block[-1])))


def tiles_of(run):
    (start, stop), first = run.first.keys[0], run.first
    return [
        Tile(
            first.start + i * run.query_step,
            first.stop + i * run.query_step,
            ((start + i * run.key_step, stop + i * run.key_step),),
        )
        for i in range(run.count)
    ]


@PROPERTY
@given(ANY_LAYOUT)
def test_common_ranges_runs_and_groups_are_the_tiles_once_more(case):
    layout, C = case
    common = [Tile(0, layout.n_queries, layout.common)] if layout.common else []
    grouped = [tile for group in layout.groups for tile in group.tiles]
    grouped += [tile for run in layout.runs for tile in tiles_of(run)]
    whole = covered(layout.tiles, layout.n_queries, C)
    order = np.arange(C) if layout.order is None else layout.order.numpy()
    assert len(order) == len({*order.tolist()})
    in_place = np.zeros_like(whole)
    in_place[:, order] = covered([*common, *grouped], layout.n_queries, C)[:, : len(order)]
    assert np.array_equal(in_place, whole)
    rest = covered(grouped, layout.n_queries, C)
    if len(layout.tiles) > 1:
        # Nothing that everybody attends is left to be copied tile by tile.
        assert not rest.all(0).any() or not layout.n_queries


@PROPERTY
@given(ANY_LAYOUT)
def test_groups_hold_tiles_of_one_shape_in_order(case):
    layout, _ = case
    shapes = [{(tile.n_queries, tile.n_keys) for tile in group.tiles} for group in layout.groups]
    assert all(len(shape) == 1 for shape in shapes)
    assert len(set().union(*shapes)) == len(shapes)
    for group in layout.groups:
        assert (group.n_queries, group.n_keys) == (group.tiles[0].n_queries, group.tiles[0].n_keys)
        assert [*group.tiles] == sorted(group.tiles)


@PROPERTY
@given(ANY_LAYOUT)
def test_runs_are_evenly_spaced_tiles_of_one_range(case):
    layout, _ = case
    for run in layout.runs:
        assert len(run.first.keys) == 1
        assert run.count >= 2
        assert run.query_step >= run.first.n_queries, "queries do not overlap"
        assert run.key_step > 0


def test_windows_that_move_with_their_frame_are_one_run():
    windows = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) <= 1
    layout = build_layout((0, 14), [Piece(0, 14, 0)], windows, 2)
    assert layout.runs == (
        TileRun(Tile(0, 2, ((0, 4),)), 2, 12, 10),  # the first frame and the last
        TileRun(Tile(2, 4, ((0, 6),)), 5, 2, 2),
    )
    assert layout.groups == ()


@PROPERTY
@given(ANY_LAYOUT, st.integers(1, 4))
def test_token_indices_of_groups_are_those_of_their_tiles(case, chunk):
    layout, _ = case
    for group in layout.groups:
        for first in range(0, len(group.tiles), chunk):
            last = min(first + chunk, len(group.tiles))
            tiles = group.tiles[first:last]
            queries, keys = group.query_tokens(first, last), group.key_tokens(first, last)
            assert queries.shape == (last - first, group.n_queries)
            assert keys.shape == (last - first, group.n_keys)
            assert queries.tolist() == [[*range(tile.start, tile.stop)] for tile in tiles]
            assert keys.tolist() == [
                [token for start, stop in tile.keys for token in range(start, stop)]
                for tile in tiles
            ]


@PROPERTY
@given(ANY_LAYOUT)
def test_a_layout_on_a_device_is_the_same_layout(case):
    layout, _ = case
    there = layout.to("meta")
    assert (there.tiles, there.common, there.pairs) == (layout.tiles, layout.common, layout.pairs)
    for group, moved in zip(layout.groups, there.groups, strict=True):
        assert moved.tiles == group.tiles
        for name in ("first_query", "edges", "jumps"):
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == getattr(group, name).shape


@PROPERTY
@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 5), st.data())
def test_frame_runs_are_the_tokens_of_the_chosen_frames(frames, P, data):
    S = len(frames) * P
    low = data.draw(st.integers(0, S))
    high = data.draw(st.integers(low, S))
    runs = frame_runs(np.array(frames), P, (low, high))
    tokens = [token for start, stop in runs for token in range(start, stop)]
    assert tokens == [token for token in range(low, high) if frames[token // P]]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs)), "neighbors are joined"


def test_equal_keys_are_not_joined_over_queries_that_attend_nothing():
    matrix = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=bool)
    layout = build_layout((0, 6), [Piece(0, 4, 0)], matrix, 2)
    assert layout.tiles == (Tile(0, 2, ((0, 4),)), Tile(4, 6, ((0, 4),)))
    assert not layout.covers_all_queries
    assert layout.common == (), "queries that attend nothing do not attend what others share"


def test_anchors_are_common_ranges():
    matrix = np.eye(4, dtype=bool)
    matrix[:, [0, 2]] = True
    layout = build_layout((0, 8), [Piece(0, 8, 0)], matrix, 2)
    assert layout.common == ((0, 2), (4, 6))
    assert layout.runs == (TileRun(Tile(2, 4, ((2, 4),)), 2, 4, 4),)
    assert layout.groups == ()
    assert layout.covers_all_queries
    assert layout.order is None, "a copy of all keys would be more than the two anchors"


def test_pack_lays_intervals_one_behind_the_other():
    assert pack([(4, 7), (20, 21), (9, 11)]) == (Piece(4, 7, 0), Piece(20, 21, 3), Piece(9, 11, 4))


def test_full_layout():
    full = full_layout(3, 5)
    assert full.tiles == (Tile(0, 3, ((0, 5),)),)
    assert (full.n_queries, full.pairs, full.covers_all_queries) == (3, 15, True)
    empty = full_layout(3, 0)
    assert empty.tiles == empty.common == empty.runs == empty.groups == ()
    assert (empty.n_queries, empty.pairs, empty.covers_all_queries) == (3, 0, False)
    assert layout_of([], 3).tiles == ()


def test_a_dense_block_is_one_tile():
    layout = build_layout((3, 9), [Piece(0, 12, 0)], np.ones((4, 4), dtype=bool), 3)
    assert layout.tiles == (Tile(0, 6, ((0, 12),)),)
    assert layout.common == (), "one tile shares nothing with others"


def test_windows_among_anchors_are_copied_once_with_the_anchors_in_front():
    """81 frames on 8 ranks: tile by tile many copies, in this order each window is one range."""
    pattern = published(81, horizon=21)
    for rank in range(8):
        shards = Shards(FrameGrid(81, 2, 4), 8)
        start, stop = shards.token_range(rank)
        pieces = [Piece(start, stop, 0)]
        layout = build_layout((start, stop), pieces, pattern.attended[0], 8)
        assert layout.order is not None and len(layout.order) == stop - start
        assert [a for a, _ in layout.common] == [0], "the anchors stand together in front"
        tiles = [t for group in layout.groups for t in group.tiles]
        tiles += [t for run in layout.runs for t in tiles_of(run)]
        assert tiles and all(len(tile.keys) == 1 for tile in tiles)


def test_no_order_where_it_copies_more_than_it_saves():
    tiles = [Tile(0, 2, ((0, 2), (4, 6))), Tile(2, 4, ((10, 40),)), Tile(4, 6, ((41, 60),))]
    assert layout_of(tiles, 6).order is None
