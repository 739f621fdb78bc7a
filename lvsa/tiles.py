"""Tiles: queries that attend the same keys, and those of one shape together for batched kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lvsa.shards import TokenRange


class Tile(NamedTuple):
    """Local queries [start, stop) and the ranges of the block that each of them attends."""

    start: int
    stop: int
    keys: tuple[TokenRange, ...]

    @property
    def n_queries(self) -> int:
        return self.stop - self.start

    @property
    def n_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one shape, queries × keys: they can share one kernel call.

    The token indices of n tiles with up to R ranges follow from small tables: position j of a
    tile's keys is token j + Σ_r jumps[r] · (j ≥ edges[r]) of the block.

    Args:
        tiles: n of them.
        first_query: ``[n]`` int64, where each tile's queries begin.
        edges: ``[n, R]`` int64, position at which each range begins among the tile's keys.
        jumps: ``[n, R]`` int64, tokens of the block left out before each range.
    """

    tiles: tuple[Tile, ...]
    first_query: Tensor
    edges: Tensor
    jumps: Tensor

    @property
    def n_queries(self) -> int:
        """Queries of each tile."""
        return self.tiles[0].n_queries

    @property
    def n_keys(self) -> int:
        """Keys of each tile."""
        return self.tiles[0].n_keys

    def to(self, device: torch.device | str) -> "TileGroup":
        """The same group with its tables on a device."""
        return TileGroup(
            self.tiles,
            self.first_query.to(device),
            self.edges.to(device),
            self.jumps.to(device),
        )

    def query_tokens(self, first: int, last: int) -> Tensor:
        """``[last − first, queries]``: local query tokens of the tiles first … last − 1."""
        position = torch.arange(self.n_queries, device=self.first_query.device)
        return self.first_query[first:last, None] + position

    def key_tokens(self, first: int, last: int) -> Tensor:
        """``[last − first, keys]``: tokens of the block that these tiles attend."""
        position = torch.arange(self.n_keys, device=self.edges.device)
        reached = position >= self.edges[first:last, :, None]
        return position + (reached * self.jumps[first:last, :, None]).sum(1)


def group_tiles(tiles: Sequence[Tile]) -> tuple[TileGroup, ...]:
    """Tiles of the same shape together, in order of their first tile."""
    by_shape: dict[tuple[int, int], list[Tile]] = {}
    for tile in tiles:
        by_shape.setdefault((tile.n_queries, tile.n_keys), []).append(tile)
    return tuple(_group(group) for group in by_shape.values())


def _group(tiles: list[Tile]) -> TileGroup:
    most = max(len(tile.keys) for tile in tiles)
    # A tile with fewer ranges than others has further ones that none of its keys reaches.
    edges = np.full((len(tiles), most), tiles[0].n_keys, dtype=np.int64)
    jumps = np.zeros((len(tiles), most), dtype=np.int64)
    for row, tile in enumerate(tiles):
        position, before = 0, 0
        for column, (start, stop) in enumerate(tile.keys):
            edges[row, column], jumps[row, column] = position, start - before
            position, before = position + stop - start, stop
    first_query = torch.tensor([tile.start for tile in tiles], dtype=torch.int64)
    return TileGroup(tuple(tiles), first_query, torch.from_numpy(edges), torch.from_numpy(jumps))
