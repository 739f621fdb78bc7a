"""Block layouts for property tests, and their masks."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from lvsa.layout import BlockLayout, Tile, layout_of


def layout_mask(layout: BlockLayout, n_keys: int) -> Tensor:
    """[L, C] bool, which keys each query attends."""
    mask = torch.zeros(layout.n_queries, n_keys, dtype=torch.bool)
    for tile in layout.tiles:
        for start, stop in tile.keys:
            mask[tile.start : tile.stop, start:stop] = True
    return mask


@st.composite
def layouts(draw):
    """Runs of queries with any ranges of keys, some with none, many of equal shape; and C."""
    C = draw(st.integers(1, 14))
    shared = draw(st.sampled_from([(), (), ((0, 1),)]))
    tiles, position = [], 0
    for _ in range(draw(st.integers(1, 7))):
        n_queries = draw(st.sampled_from([1, 2, 2, 2, 3]))
        edges = sorted(draw(st.sets(st.integers(2 if shared else 0, max(2, C)), max_size=4)))
        edges = [edge for edge in edges if edge <= C]
        keys = (*shared, *zip(edges[::2], edges[1::2], strict=False))
        if keys:
            tiles.append(Tile(position, position + n_queries, keys))
        position += n_queries
    return layout_of(tiles, position), C
