"""A layout as tables for kernels that compute all its tiles in one launch.

A strip is a run of up to 128 queries of one tile, so of queries that attend the same keys. The
keys of a tile are cut into blocks of 128 consecutive tokens, which a kernel reads by their first
token, and the tokens that fill no block, which it reads from a list: those of all ranges of a tile
stand behind one another, so that a tile has at most one block that is not full, however many
ranges it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lvsa.pattern import Ints
from lvsa.tiles import Tile

STRIP_ROWS = 128
BLOCK_KEYS = 128


@dataclass(frozen=True)
class Strips:
    """The work of one block of keys and values. Build it with `cut_strips`.

    Args:
        table: ``[n, 6]`` int32, a strip in each row: its first query and the one after its last,
            then where its whole blocks and its other keys begin and end. Most keys first. Every
            query is in one strip, also those that attend nothing.
        whole_blocks: ``[W]`` int32, first token of each block of consecutive keys.
        other_keys: ``[K]`` int32, tokens that are in no such block.
        rows: queries of a strip, at most.
        keys: tokens of a block.
    """

    table: Tensor
    whole_blocks: Tensor
    other_keys: Tensor
    rows: int
    keys: int

    def to(self, device: torch.device | str) -> "Strips":
        """The same tables on a device."""
        return replace(
            self,
            table=self.table.to(device),
            whole_blocks=self.whole_blocks.to(device),
            other_keys=self.other_keys.to(device),
        )


def cut_strips(
    tiles: Sequence[Tile], n_queries: int, rows: int = STRIP_ROWS, keys: int = BLOCK_KEYS
) -> Strips:
    """The strips of tiles in order of their queries, and of the queries in no tile."""
    strips: list[Ints] = []
    blocks: list[Ints] = [np.empty(0, dtype=np.int64)]
    others: list[Ints] = [np.empty(0, dtype=np.int64)]
    n_blocks, n_others, position = 0, 0, 0
    for tile in (*tiles, Tile(n_queries, n_queries, ())):
        if position < tile.start:
            strips.append(_strips(position, tile.start, rows, (0, 0, 0, 0)))
        cuts = [start + (stop - start) // keys * keys for start, stop in tile.keys]
        whole = [np.arange(a, cut, keys) for (a, _), cut in zip(tile.keys, cuts, strict=True)]
        other = [np.arange(cut, b) for (_, b), cut in zip(tile.keys, cuts, strict=True)]
        blocks, others = blocks + whole, others + other
        more_blocks, more_others = sum(map(len, whole)), sum(map(len, other))
        listed = (n_blocks, n_blocks + more_blocks, n_others, n_others + more_others)
        strips.append(_strips(tile.start, tile.stop, rows, listed))
        n_blocks, n_others, position = listed[1], listed[3], tile.stop
    table = np.concatenate(strips)
    n_keys = (table[:, 3] - table[:, 2]) * keys + table[:, 5] - table[:, 4]
    # The longest first, so that no processor begins one when the others are done.
    table = table[np.argsort(-n_keys, kind="stable")]
    return Strips(
        table=_int32(table),
        whole_blocks=_int32(np.concatenate(blocks)),
        other_keys=_int32(np.concatenate(others)),
        rows=rows,
        keys=keys,
    )


def _strips(start: int, stop: int, rows: int, listed: tuple[int, int, int, int]) -> Ints:
    first = np.arange(start, stop, rows, dtype=np.int64)[:, None]
    return np.concatenate(
        [first, np.minimum(first + rows, stop), np.tile(listed, (len(first), 1))], axis=1
    )


def _int32(table: Ints) -> Tensor:
    return torch.from_numpy(table.astype(np.int32))
