"""Strips: the tables of one launch cover exactly the layout's pairs, and lose little."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.keyframes import published
from lvsa.layout import Piece, build_layout
from lvsa.strips import cut_strips
from lvsa.tiles import Tile
from tests.support.layouts import layout_mask, layouts

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


def keys_of(strips, row):
    """Tokens that a strip attends, as a kernel reads them."""
    _, _, block, block_stop, other, other_stop = strips.table[row].tolist()
    blocks = strips.whole_blocks[block:block_stop].tolist()
    whole = [token for first in blocks for token in range(first, first + strips.keys)]
    return whole + strips.other_keys[other:other_stop].tolist()


@PROPERTY
@given(layouts(), st.integers(1, 4), st.integers(1, 5))
def test_every_attended_pair_once_and_every_query_in_one_strip(case, rows, keys):
    layout, C = case
    strips = cut_strips(layout.tiles, layout.n_queries, rows, keys)
    count = torch.zeros(layout.n_queries, C, dtype=torch.int64)
    queries = torch.zeros(layout.n_queries, dtype=torch.int64)
    for row, (first, stop, *_) in enumerate(strips.table.tolist()):
        assert 0 < stop - first <= rows
        queries[first:stop] += 1
        for token in keys_of(strips, row):
            count[first:stop, token] += 1
    assert torch.equal(count, layout_mask(layout, C).long())
    assert (queries == 1).all()


@PROPERTY
@given(layouts(), st.integers(1, 4), st.integers(1, 5))
def test_the_longest_strips_come_first(case, rows, keys):
    layout, _ = case
    strips = cut_strips(layout.tiles, layout.n_queries, rows, keys)
    lengths = [len(keys_of(strips, row)) for row in range(len(strips.table))]
    assert lengths == sorted(lengths, reverse=True)


def test_what_is_left_of_all_ranges_stands_together():
    """Three ranges of 10 are 2 blocks of 4 and 2 tokens each: 6 blocks, and 6 tokens in a list."""
    tile = Tile(0, 5, ((0, 10), (20, 30), (40, 50)))
    strips = cut_strips([tile], 7, rows=4, keys=4)
    assert strips.table.tolist() == [[0, 4, 0, 6, 0, 6], [4, 5, 0, 6, 0, 6], [5, 7, 0, 0, 0, 0]]
    assert strips.whole_blocks.tolist() == [0, 4, 20, 24, 40, 44]
    assert strips.other_keys.tolist() == [8, 9, 28, 29, 48, 49]


def test_no_queries():
    assert cut_strips([], 0).table.shape == (0, 6)


def test_the_tables_of_a_layout_are_int32_and_move_with_it():
    layout = build_layout((0, 6), [Piece(0, 6, 0)], np.eye(3, dtype=bool), 2)
    for strips, device in ((layout.strips, "cpu"), (layout.to("meta").strips, "meta")):
        for table in (strips.table, strips.whole_blocks, strips.other_keys):
            assert table.dtype == torch.int32
            assert table.device.type == device


# Padding that strips and blocks of 128 add to the attended pairs, at 81 latent frames and 3× the
# horizon: rows of a tile's last strip, keys of its last block. The figures of docs/kernels.md.
LOST = {1560: 0.0455, 3600: 0.0225, 1350: 0.0391, 880: 0.0221}


@pytest.mark.parametrize(("P", "lost"), LOST.items())
def test_tokens_of_a_frame_that_no_block_divides_cost_little(P, lost):
    pattern = published(81, horizon=21)
    layout = build_layout((0, 81 * P), [Piece(0, 81 * P, 0)], pattern.attended[0], P)
    strips = layout.strips
    table = strips.table.numpy().astype(np.int64)
    blocks = table[:, 3] - table[:, 2] + -(-(table[:, 5] - table[:, 4]) // strips.keys)
    computed = (blocks * strips.keys * strips.rows).sum()
    assert 1 - layout.pairs / computed == pytest.approx(lost, abs=1e-4)
