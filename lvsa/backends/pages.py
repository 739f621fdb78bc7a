"""A block's layout as pages of its buffer, as engines for language models hold their keys.

A request is a tile. A page is the largest power of two of tokens that every range begins and ends
on, down to a single one, so that no page holds a token that is not attended.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lvsa.layout import BlockLayout
from lvsa.shards import TokenRange

MOST_TOKENS_A_PAGE = 128


@dataclass(frozen=True)
class PageTables:
    """A layout in the terms of FlashInfer's batch prefill; int32, on the host.

    Args:
        page: tokens of a page.
        query_starts: ``[n + 1]``, where the queries of each request begin, and L.
        page_starts: ``[n + 1]``, where the pages of each request begin among ``pages``.
        pages: pages of the block that the requests attend, one request behind the other.
        last_page_tokens: ``[n]``, tokens of each request's last page that it attends.
        unattended: runs of queries that attend nothing. Requests without keys are not documented,
            so these attend the first token of the block and their result is overwritten.
    """

    page: int
    query_starts: Tensor
    page_starts: Tensor
    pages: Tensor
    last_page_tokens: Tensor
    unattended: tuple[TokenRange, ...]


def page_tables(layout: BlockLayout) -> PageTables:
    """The tables of a layout in which some query attends something."""
    edges = [edge for tile in layout.tiles for keys in tile.keys for edge in keys]
    page = math.gcd(MOST_TOKENS_A_PAGE, *edges)
    starts, pages, last, unattended = [0], [], [], []
    for tile in (*layout.tiles, None):
        stop = layout.n_queries if tile is None else tile.start
        if starts[-1] < stop:
            unattended.append((starts[-1], stop))
            starts.append(stop)
            pages.append(np.zeros(1))
            last.append(1)
        if tile is not None:
            starts.append(tile.stop)
            ranges = [np.arange(start // page, stop // page) for start, stop in tile.keys]
            pages.append(np.concatenate(ranges))
            last.append(page)
    return PageTables(
        page=page,
        query_starts=_int32(starts),
        page_starts=_int32(np.cumsum([0, *(len(attended) for attended in pages)])),
        pages=_int32(np.concatenate(pages)),
        last_page_tokens=_int32(last),
        unattended=tuple(unattended),
    )


def _int32(table: ArrayLike) -> Tensor:
    return torch.from_numpy(np.asarray(table, dtype=np.int32))
