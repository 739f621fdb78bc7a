"""From the frame matrix to token ranges: what a kernel computes for one block of keys.

A block holds keys and values as a list of pieces of the sequence. A layout says, for every run of
local queries, which ranges of the block they attend. Neighboring queries with the same ranges
form one tile, so a dense pattern is a single tile and costs a single kernel call.

Layouts are plain data, filled once when they are built: kernels read them and derive nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lvsa.pattern import Bools, Ints
from lvsa.shards import TokenRange
from lvsa.strips import Strips, cut_strips
from lvsa.tiles import Tile, TileGroup, TileRun, group_tiles


class Piece(NamedTuple):
    """Tokens [start, stop) of the sequence, standing at ``position`` of a block's buffer."""

    start: int
    stop: int
    position: int


@dataclass(frozen=True)
class BlockLayout:
    """The work of one rank on one block. Build it with `layout_of`.

    Args:
        tiles: in order of their queries; queries that attend nothing here are in no tile.
        n_queries: L, local queries.
        order: ``[n]`` int64, tokens of the block as they are to be copied for dense kernels, the
            common ones first, so that what is left of a window is one range; None where that
            copies more than it saves. Common ranges, runs and groups count in this order.
        common: ranges that every query attends (the anchors). They cost a kernel one call for all
            queries.
        runs, groups: the tiles without the common ranges: those that are evenly spaced, and the
            others, those of one shape together.
        strips: all tiles with all their ranges, for kernels of one launch.
        covers_all_queries: whether every local query attends something in this block.
        pairs: (query, key) token pairs; the FLOPs of a head are 4·D times this.
    """

    tiles: tuple[Tile, ...]
    n_queries: int
    order: Tensor | None
    common: tuple[TokenRange, ...]
    runs: tuple[TileRun, ...]
    groups: tuple[TileGroup, ...]
    strips: Strips
    covers_all_queries: bool
    pairs: int

    def to(self, device: torch.device | str) -> "BlockLayout":
        """The same layout with its tables on a device."""
        groups = tuple(group.to(device) for group in self.groups)
        order = None if self.order is None else self.order.to(device)
        return replace(self, order=order, groups=groups, strips=self.strips.to(device))


def layout_of(tiles: Sequence[Tile], n_queries: int) -> BlockLayout:
    """The layout of these tiles, with everything that kernels read of it."""
    covered = sum(tile.n_queries for tile in tiles)
    order, common, rest = _arranged(tiles, covered == n_queries)
    runs, groups = group_tiles(rest)
    return BlockLayout(
        tiles=tuple(tiles),
        n_queries=n_queries,
        order=order,
        common=common,
        runs=runs,
        groups=groups,
        strips=cut_strips(tiles, n_queries),
        covers_all_queries=covered == n_queries,
        pairs=sum(tile.n_queries * tile.n_keys for tile in tiles),
    )


Arrangement = tuple[Tensor | None, tuple[TokenRange, ...], Sequence[Tile]]
"""An order of the block's tokens, the ranges that all tiles attend, the tiles without them."""


def _arranged(tiles: Sequence[Tile], cover_all: bool) -> Arrangement:
    """The arrangement that copies less: the block as it stands, or with common tokens first."""
    if len(tiles) < 2:
        return None, (), tiles
    edges = np.unique([edge for tile in tiles for keys in tile.keys for edge in keys])
    starts, stops = edges[:-1], edges[1:]
    covered = np.zeros((len(tiles), len(starts)), dtype=np.bool_)
    for row, tile in zip(covered, tiles, strict=True):
        for start, stop in tile.keys:
            row[np.searchsorted(edges, start) : np.searchsorted(edges, stop)] = True
    common: Bools = np.asarray(covered.all(0)) & cover_all
    as_it_stands = _without(common, tiles, covered, starts, stops)
    order = np.concatenate([np.flatnonzero(common), np.flatnonzero(covered.any(0) & ~common)])
    length = (stops - starts)[order]
    place = length.cumsum() - length
    moved = _without(common[order], tiles, covered[:, order], place, place + length)
    if _copied(*as_it_stands) <= length.sum() + _copied(*moved):
        return None, *as_it_stands
    tokens = [torch.arange(starts[i], stops[i]) for i in order.tolist()]
    return torch.cat(tokens), *moved


def _without(
    common: Bools, tiles: Sequence[Tile], covered: Bools, starts: Ints, stops: Ints
) -> tuple[tuple[TokenRange, ...], Sequence[Tile]]:
    """Common ranges, and the tiles with what they attend beside them.

    Args:
        common: ``[n]``, which intervals all tiles attend.
        covered: ``[tiles, n]``, which each attends.
        starts, stops: ``[n]``, where the intervals stand.
    """
    if not common.any():
        ranges: tuple[TokenRange, ...] = ()
    else:
        ranges = _join(starts[common], stops[common])
    rest = [
        tile._replace(keys=_join(starts[own], stops[own]))
        for tile, own in zip(tiles, covered & ~common, strict=True)
        if own.any()
    ]
    return ranges, rest


def _copied(common: Sequence[TokenRange], tiles: Sequence[Tile]) -> int:
    """Tokens that dense kernels copy: those of ranges that do not stand together."""
    of_tiles = sum(tile.n_keys for tile in tiles if len(tile.keys) > 1)
    return of_tiles + (sum(b - a for a, b in common) if len(common) > 1 else 0)


def pack(intervals: Iterable[TokenRange]) -> tuple[Piece, ...]:
    """Intervals of the sequence laid one behind the other in a buffer."""
    pieces, position = [], 0
    for start, stop in intervals:
        pieces.append(Piece(start, stop, position))
        position += stop - start
    return tuple(pieces)


def frame_runs(frames: Bools, tokens_per_frame: int, within: TokenRange) -> list[TokenRange]:
    """Token intervals of the chosen frames inside ``within``, neighbors joined.

    Args:
        frames: ``[T]``, the chosen frames.
        tokens_per_frame: P.
        within: only tokens in here are returned.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], frames, [False]]).astype(np.int8)))
    low, high = within
    runs = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        start, stop = max(low, first * tokens_per_frame), min(high, last * tokens_per_frame)
        if start < stop:
            runs.append((start, stop))
    return runs


def build_layout(
    queries: TokenRange, pieces: Sequence[Piece], attended: Bools, tokens_per_frame: int
) -> BlockLayout:
    """What the queries [start, stop) of the sequence attend in a block made of ``pieces``.

    Args:
        queries: global interval of the local queries.
        pieces: contents of the block.
        attended: ``[T, T]`` frame matrix at one offset.
        tokens_per_frame: P.
    """
    start, stop = queries
    P = tokens_per_frame
    # The block cut at frame borders: one atom is the part of one frame that lies in one piece.
    atoms = [
        (frame, max(piece.start, frame * P) + shift, min(piece.stop, (frame + 1) * P) + shift)
        for piece, shift in ((piece, piece.position - piece.start) for piece in pieces)
        for frame in range(piece.start // P, -(-piece.stop // P))
    ]
    atom_frame, atom_start, atom_stop = np.array(atoms, dtype=np.int64).reshape(-1, 3).T
    tiles: list[Tile] = []
    for frame in range(start // P, -(-stop // P)):
        chosen = attended[frame][atom_frame]
        if not chosen.any():
            continue
        keys = _join(atom_start[chosen], atom_stop[chosen])
        first, last = max(start, frame * P) - start, min(stop, (frame + 1) * P) - start
        if tiles and tiles[-1].stop == first and tiles[-1].keys == keys:
            tiles[-1] = tiles[-1]._replace(stop=last)
        else:
            tiles.append(Tile(first, last, keys))
    return layout_of(tiles, stop - start)


def _join(starts: Ints, stops: Ints) -> tuple[TokenRange, ...]:
    """Intervals in buffer order with touching neighbors made one."""
    head = np.concatenate([[True], starts[1:] != stops[:-1]])
    tail = np.concatenate([head[1:], [True]])
    return tuple(zip(starts[head].tolist(), stops[tail].tolist(), strict=True))


def full_layout(n_queries: int, n_keys: int) -> BlockLayout:
    """Every query attends every key; with no keys, nothing."""
    return layout_of([Tile(0, n_queries, ((0, n_keys),))] if n_keys else [], n_queries)
