"""Block-sparse attention out of calls to a dense kernel, tile by tile.

Each tile is one call over the keys that it attends, so the work is proportional to the density of
the pattern. Keys that every tile attends (the anchors) take one call for all queries; where these
stand amid the others the block is copied once with them in front, so that the window of a frame is
one range. Tiles of equal shape share a call: in place where they are evenly spaced, as windows that
move with their frame are, gathered where they are too small to fill the machine.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState, merge_into
from lvsa.tiles import Tile, TileGroup, TileRun

SMALL_TILE_WORK = {"cpu": 1 << 22}
"""Multiply-adds of a tile below which its kernel call does not pay: such tiles are gathered."""
SMALL_TILE_WORK_ELSEWHERE = 1 << 28
GATHER_BYTES = 256 << 20
"""Gathered copies of keys and values in flight at a time."""

Kernel = Callable[[Tensor, Tensor, Tensor, float], AttentionState]
"""Dense attention ``(q_BLHD, k_BCHD, v_BCHD, scale)``, C > 0; any strides, the last one 1."""


class TileBackend(Backend):
    """Block-sparse attention with the dense kernels of a library.

    Args:
        gather_bytes: most bytes of gathered copies at a time.
    """

    def __init__(self, gather_bytes: int = GATHER_BYTES) -> None:
        self.gather_bytes = gather_bytes

    @abstractmethod
    def kernel_for(self, q_BLHD: Tensor) -> Kernel:
        """The dense kernel for queries like these.

        Raises:
            BackendUnavailable: where there is none for their device, dtype or head dimension.
        """

    def attend(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        layout: BlockLayout,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        kernel = self.kernel_for(q_BLHD)
        scale = 1 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
        if layout.order is not None:
            k_BCHD, v_BCHD = (x.index_select(1, layout.order) for x in (k_BCHD, v_BCHD))
        dtype = lse_dtype(q_BLHD) if more else q_BLHD.dtype
        block = None
        if layout.common:
            everyone = Tile(0, layout.n_queries, layout.common)
            block = _tile(kernel, q_BLHD, k_BCHD, v_BCHD, everyone, scale)
        if layout.runs or layout.groups or block is None:
            rest = self._rest(kernel, q_BLHD, k_BCHD, v_BCHD, layout, scale)
            block = merge_into(block, rest, dtype if state is None else None)
        return merge_into(state, block, dtype)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        kernel = self.kernel_for(q_BLHD)
        if not k_BCHD.shape[1]:
            return nothing_attended(q_BLHD) if state is None else state
        scale = 1 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
        dtype = lse_dtype(q_BLHD) if more else q_BLHD.dtype
        return merge_into(state, kernel(q_BLHD, k_BCHD, v_BCHD, scale), dtype)

    def _rest(
        self, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> AttentionState:
        """All tiles without the common ranges."""
        parts: list[Part] = []
        for run in layout.runs:
            parts += _run(kernel, q, k, v, run, scale)
        B, _, H, D = q.shape
        small = SMALL_TILE_WORK.get(q.device.type, SMALL_TILE_WORK_ELSEWHERE)
        for group in layout.groups:
            work = B * H * D * group.n_queries * group.n_keys
            if len(group.tiles) > 1 and work < small:
                parts += self._gathered(kernel, q, k, v, group, scale)
            else:
                parts += [(t.start, _tile(kernel, q, k, v, t, scale)) for t in group.tiles]
        return _joined(q, parts)

    def _gathered(
        self, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, group: TileGroup, scale: float
    ) -> Iterator["Part"]:
        """Equal tiles as a batch; the copies of keys and values stay below ``gather_bytes``."""
        B, _, H, D = q.shape
        per_tile = 2 * B * H * D * group.n_keys * q.element_size()
        chunk = max(1, self.gather_bytes // per_tile)
        for first in range(0, len(group.tiles), chunk):
            tiles = group.tiles[first : first + chunk]
            last = first + len(tiles)
            rows, columns = (
                tokens(first, last).flatten() for tokens in (group.query_tokens, group.key_tokens)
            )
            batch = [
                x.index_select(1, index).view(B * len(tiles), -1, H, D)
                for x, index in ((q, rows), (k, columns), (v, columns))
            ]
            outs, lses = (
                x.unflatten(0, (B, -1)).unbind(1)
                for x in kernel(batch[0], batch[1], batch[2], scale)
            )
            del batch  # or the next copies would stand beside these
            for tile, *state in zip(tiles, outs, lses, strict=True):
                yield tile.start, AttentionState(*state)


Part = tuple[int, AttentionState]
"""Where some queries begin, and their attention."""


def _joined(q_BLHD: Tensor, parts: list[Part]) -> AttentionState:
    """One state of all queries; those that are in no part have attended nothing."""
    parts = sorted(parts, key=lambda part: part[0])
    states: list[AttentionState] = []
    position = 0
    for start, state in (*parts, (q_BLHD.shape[1], None)):
        if position < start:
            states.append(nothing_attended(q_BLHD[:, position:start]))
        if state is not None:
            states.append(state)
            position = start + state.out_BLHD.shape[1]
    if len(states) == 1:
        return states[0]
    outs, lses = zip(*states, strict=True)
    return AttentionState(torch.cat(outs, dim=1), torch.cat(lses, dim=2))


def lse_dtype(q: Tensor) -> torch.dtype:
    """dtype of the log-sum-exp for such queries."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def nothing_attended(q_BLHD: Tensor) -> AttentionState:
    """The state of queries that have met no key."""
    B, L, H, _ = q_BLHD.shape
    out = torch.zeros_like(q_BLHD, memory_format=torch.contiguous_format)
    return AttentionState(out, q_BLHD.new_full((B, H, L), -math.inf, dtype=lse_dtype(q_BLHD)))


def _tile(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float
) -> AttentionState:
    """One kernel call. A tile whose keys stand together is attended in place, uncopied."""
    keys, values = (_ranges(x, tile) for x in (k, v))
    return kernel(q[:, tile.start : tile.stop], keys, values, scale)


def _ranges(x_BCHD: Tensor, tile: Tile) -> Tensor:
    """The tile's ranges of a block: a view where they stand together, else one copy."""
    parts = [x_BCHD[:, start:stop] for start, stop in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _run(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, run: TileRun, scale: float
) -> Iterator[Part]:
    """Evenly spaced tiles as the batch of one call; a call per batch element, nothing copied."""
    queries = run.first.start, run.first.n_queries, run.query_step, run.count
    keys = run.first.keys[0][0], run.first.n_keys, run.key_step, run.count
    of_batch = [
        kernel(_windows(q[b], *queries), _windows(k[b], *keys), _windows(v[b], *keys), scale)
        for b in range(q.shape[0])
    ]
    outs, lses = (
        x[0].split(1) if len(x) == 1 else torch.stack(x, dim=1).unbind(0)
        for x in zip(*of_batch, strict=True)
    )
    for i, state in enumerate(zip(outs, lses, strict=True)):
        yield run.first.start + i * run.query_step, AttentionState(*state)


def _windows(x: Tensor, start: int, size: int, step: int, count: int) -> Tensor:
    """``[count, size, …]``: a view of windows on the first dimension, which may overlap."""
    token, *inner = x.stride()
    size_and_stride = (count, size, *x.shape[1:]), (step * token, token, *inner)
    return x[start:].as_strided(*size_and_stride)
