"""The math backend: plain PyTorch operations, on any device and in any floating dtype.

It runs wherever tensors do (MPS, XPU, AMD GPUs without flash attention, float64 on CUDA), slowly,
and is the reference for the others: scores, weights and sums are in float32, in float64 for
float64, and the output is rounded once, at the end.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.backends.tile_by_tile import lse_dtype, nothing_attended
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState, merge
from lvsa.shards import TokenRange
from lvsa.tiles import Tile

SCORE_BYTES = 128 << 20
"""Scores of queries × keys that stand in memory at a time."""
KEYS_AT_A_TIME = 8192
"""Keys and values that stand in the dtype of the scores at a time."""


class MathBackend(Backend):
    """Softmax attention by matrix products and exponentials, in chunks of bounded size.

    Args:
        score_bytes: most bytes of scores at a time.
        keys: most keys at a time.
    """

    name = "math"

    def __init__(self, score_bytes: int = SCORE_BYTES, keys: int = KEYS_AT_A_TIME) -> None:
        self.score_bytes, self.keys = score_bytes, keys

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
        return self._attend(q_BLHD, k_BCHD, v_BCHD, layout.tiles, scale, state, more)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        everything = Tile(0, q_BLHD.shape[1], ((0, k_BCHD.shape[1]),))
        return self._attend(q_BLHD, k_BCHD, v_BCHD, (everything,), scale, state, more)

    def _attend(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        tiles: Sequence[Tile],
        scale: float | None,
        state: AttentionState | None,
        more: bool,
    ) -> AttentionState:
        B, _, H, D = q_BLHD.shape
        scale = 1 / math.sqrt(D) if scale is None else scale
        dtype = lse_dtype(q_BLHD)
        out, lse = nothing_attended(q_BLHD) if state is None else state
        out = out.to(dtype)
        for tile in tiles:
            for ranges in chunks(tile.keys, self.keys):
                k_BHCD, v_BHCD = (_gather(x, ranges, dtype) for x in (k_BCHD, v_BCHD))
                per_query = B * H * k_BHCD.shape[2] * dtype.itemsize
                rows = max(1, self.score_bytes // per_query)
                for start in range(tile.start, tile.stop, rows):
                    stop = min(start + rows, tile.stop)
                    q_BHLD = q_BLHD[:, start:stop].transpose(1, 2).to(dtype) * scale
                    before = AttentionState(out[:, start:stop], lse[:, :, start:stop])
                    after = merge(before, _softmax(q_BHLD, k_BHCD, v_BHCD))
                    out[:, start:stop], lse[:, :, start:stop] = after
        return AttentionState(out if more else out.to(q_BLHD.dtype), lse)


def chunks(ranges: Sequence[TokenRange], most: int) -> Iterator[list[TokenRange]]:
    """The tokens of some ranges, in order, in lists of ranges that hold ``most`` each."""
    chunk: list[TokenRange] = []
    room = most
    for first, stop in ranges:
        start = first
        while start < stop:
            end = min(stop, start + room)
            chunk.append((start, end))
            room -= end - start
            start = end
            if not room:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk


def _gather(x_BCHD: Tensor, ranges: Sequence[TokenRange], dtype: torch.dtype) -> Tensor:
    """Keys or values of some ranges, ``[B, H, C, D]``."""
    parts = [x_BCHD[:, start:stop].transpose(1, 2).to(dtype) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _softmax(q_BHLD: Tensor, k_BHCD: Tensor, v_BHCD: Tensor) -> AttentionState:
    """Attention of scaled queries over all of these keys."""
    scores_BHLC = q_BHLD @ k_BHCD.transpose(2, 3)
    most_BHL1 = scores_BHLC.amax(-1, keepdim=True)
    weights_BHLC = scores_BHLC.sub_(most_BHL1).exp_()
    sum_BHL1 = weights_BHLC.sum(-1, keepdim=True)
    out_BHLD = (weights_BHLC @ v_BHCD) / sum_BHL1
    lse_BHL = (most_BHL1 + sum_BHL1.log()).squeeze(-1)
    return AttentionState(out_BHLD.transpose(1, 2), lse_BHL)
