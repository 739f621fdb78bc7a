"""Tiles: queries that attend the same keys, and those of one shape together for batched kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
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
class TileRun:
    """Evenly spaced tiles of one shape with one range each: one strided view holds all of them.

    Args:
        first: the first tile.
        count: how many tiles, at least two.
        query_step: tokens from the queries of one to those of the next.
        key_step: tokens from the keys of one to those of the next.
    """

    first: Tile
    count: int
    query_step: int
    key_step: int


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


def group_tiles(tiles: Sequence[Tile]) -> tuple[tuple[TileRun, ...], tuple[TileGroup, ...]]:
    """Tiles that are evenly spaced, and the others by shape, in order of their first tile."""
    by_shape: dict[tuple[int, int], list[Tile]] = {}
    for tile in tiles:
        by_shape.setdefault((tile.n_queries, tile.n_keys), []).append(tile)
    runs: list[TileRun] = []
    groups: list[TileGroup] = []
    for equal in by_shape.values():
        others = [tile for tile in equal if len(tile.keys) > 1]
        single = [tile for tile in equal if len(tile.keys) == 1]
        while single:
            run = _run(single)
            if run is None:
                others.append(single.pop(0))
            else:
                runs.append(run)
                del single[: run.count]
        if others:
            groups.append(_group(sorted(others)))
    return tuple(runs), tuple(groups)


def _run(tiles: Sequence[Tile]) -> TileRun | None:
    """The run that begins with the first of these tiles, which have one range each."""
    steps = [(b.start - a.start, b.keys[0][0] - a.keys[0][0]) for a, b in pairwise(tiles)]
    # A view cannot step backwards, and not every kernel takes a batch that stands still.
    if not steps or steps[0][1] <= 0:
        return None
    count = 1 + sum(1 for _ in takewhile(lambda step: step == steps[0], steps))
    return TileRun(tiles[0], count, *steps[0])


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
