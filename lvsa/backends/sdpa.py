"""The SDPA backend: PyTorch's own flash and memory-efficient kernels, on CPU and CUDA.

Each tile is one kernel call over the keys it attends, so the work is proportional to the density
of the pattern. Tiles of equal shape that are too small to fill the machine share one call.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.errors import BackendUnavailable
from lvsa.layout import BlockLayout, Tile, TileGroup
from lvsa.merge import AttentionState, merge_into

# A tile with fewer multiply-adds than this does not amortise its kernel call: batch it.
SMALL_TILE_WORK = {"cpu": 1 << 22, "cuda": 1 << 28}
# Gathered copies of keys and values in flight at a time, in bytes.
GATHER_BYTES = 256 << 20

Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class SDPABackend(Backend):
    """Block-sparse attention out of calls to PyTorch's fused dense kernels."""

    name = "sdpa"

    def __init__(self, gather_bytes: int = GATHER_BYTES) -> None:
        self.gather_bytes = gather_bytes

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
        kernel = kernel_for(q_BLHD)
        scale = 1 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
        block = None
        if layout.common:
            everyone = Tile(0, layout.n_queries, layout.common)
            block = _tile(kernel, q_BLHD, k_BCHD, v_BCHD, everyone, scale)
        if layout.groups or block is None:
            rest = self._groups(kernel, q_BLHD, k_BCHD, v_BCHD, layout, scale)
            block = merge_into(block, rest)
        return merge_into(state, block)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        kernel = kernel_for(q_BLHD)
        if not k_BCHD.shape[1]:
            return _nothing_attended(q_BLHD) if state is None else state
        scale = 1 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
        q_BHLD, k_BHCD, v_BHCD = (x.transpose(1, 2) for x in (q_BLHD, k_BCHD, v_BCHD))
        out_BHLD, lse_BHL = kernel(q_BHLD, k_BHCD, v_BHCD, scale)
        return merge_into(state, AttentionState(out_BHLD.transpose(1, 2), lse_BHL))

    def _groups(
        self, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> AttentionState:
        """The tiles of all groups, each by itself or with its equals where they are small."""
        tiles = [tile for group in layout.groups for tile in group.tiles]
        if len(tiles) == 1 and layout.groups_cover_all_queries:
            return _tile(kernel, q, k, v, tiles[0], scale)
        B, L, H, D = q.shape
        if layout.groups_cover_all_queries:
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            lse = q.new_empty((B, H, L), dtype=lse_dtype(q))
        else:
            out, lse = _nothing_attended(q)
        for group in layout.groups:
            work = B * H * D * group.n_queries * group.n_keys
            if len(group.tiles) > 1 and work < SMALL_TILE_WORK[q.device.type]:
                self._batch(kernel, q, k, v, group, scale, out, lse)
                continue
            for tile in group.tiles:
                state = _tile(kernel, q, k, v, tile, scale)
                out[:, tile.start : tile.stop] = state.out_BLHD
                lse[:, :, tile.start : tile.stop] = state.lse_BHL
        return AttentionState(out, lse)

    def _batch(
        self,
        kernel: Kernel,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        group: TileGroup,
        scale: float,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """Equal tiles as a batch; the copies of keys and values stay below ``gather_bytes``."""
        B, _, H, D = q.shape
        per_tile = 2 * B * H * D * group.n_keys * q.element_size()
        chunk = max(1, self.gather_bytes // per_tile)
        for first in range(0, len(group.tiles), chunk):
            last = min(first + chunk, len(group.tiles))
            rows, columns = (
                tokens(first, last).flatten() for tokens in (group.query_tokens, group.key_tokens)
            )
            batch = [
                x.index_select(1, index).view(B * (last - first), -1, H, D).transpose(1, 2)
                for x, index in ((q, rows), (k, columns), (v, columns))
            ]
            out_BHLD, lse_BHL = kernel(batch[0], batch[1], batch[2], scale)
            del batch  # or the next copies would stand beside these
            out.index_copy_(1, rows, out_BHLD.transpose(1, 2).reshape(B, -1, H, D))
            lse_BHnL = lse_BHL.view(B, last - first, H, -1).transpose(1, 2)
            lse.index_copy_(2, rows, lse_BHnL.reshape(B, H, -1))


def lse_dtype(q: Tensor) -> torch.dtype:
    """dtype of the log-sum-exp for such queries."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _nothing_attended(q_BLHD: Tensor) -> AttentionState:
    """The state of queries that have met no key."""
    B, L, H, _ = q_BLHD.shape
    out = torch.zeros_like(q_BLHD, memory_format=torch.contiguous_format)
    return AttentionState(out, q_BLHD.new_full((B, H, L), -math.inf, dtype=lse_dtype(q_BLHD)))


def _tile(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float
) -> AttentionState:
    """One kernel call. A tile whose keys stand together is attended in place, uncopied."""
    k_BHCD, v_BHCD = (_ranges(x.transpose(1, 2), tile) for x in (k, v))
    q_BHLD = q[:, tile.start : tile.stop].transpose(1, 2)
    out_BHLD, lse_BHL = kernel(q_BHLD, k_BHCD, v_BHCD, scale)
    return AttentionState(out_BHLD.transpose(1, 2), lse_BHL)


def _ranges(x_BHCD: Tensor, tile: Tile) -> Tensor:
    """The tile's ranges of a block: a view where they stand together, else one copy."""
    parts: Sequence[Tensor] = [x_BHCD[:, :, start:stop] for start, stop in tile.keys]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def kernel_for(q: Tensor) -> Kernel:
    """The fused kernel that returns a log-sum-exp for tensors like this one.

    Raises:
        BackendUnavailable: where PyTorch has none for this device and dtype.
    """
    if q.device.type == "cpu":
        return _flash_cpu
    if q.device.type == "cuda":
        if q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
            # Flash attention came with Ampere; the efficient kernel serves older GPUs.
            recent = torch.cuda.get_device_capability(q.device) >= (8, 0)
            return _flash_cuda if recent else _efficient_cuda
        if q.dtype == torch.float32:
            return _efficient_cuda
    raise BackendUnavailable(
        f"backend 'sdpa' has no kernel with a log-sum-exp for {q.dtype} with head dimension "
        f"{q.shape[-1]} on {q.device.type}; use float16, bfloat16 or float32 on CUDA, any "
        "floating dtype on CPU"
    )


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    return out, lse


def _flash_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    # The kernel takes head dimensions that are multiples of 8; zeros change no score.
    D = q.shape[-1]
    if D % 8:
        q, k, v = (torch.nn.functional.pad(x, (0, 8 - D % 8)) for x in (q, k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return out[..., :D], lse[..., : q.shape[2]]


def _efficient_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_bias=None, compute_log_sumexp=True, scale=scale
    )[:2]
    # The kernel pads its rows of log-sum-exp to a multiple of 32.
    return out, lse[..., : q.shape[2]]
