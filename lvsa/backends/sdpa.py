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
from lvsa.layout import BlockLayout, Tile
from lvsa.merge import AttentionState, merge

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
        self._indices: dict[tuple[int, int, torch.device], tuple[BlockLayout, Tensor, Tensor]] = {}

    def attend(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        layout: BlockLayout,
        scale: float | None = None,
    ) -> AttentionState:
        kernel = kernel_for(q_BLHD)
        scale = 1 / math.sqrt(q_BLHD.shape[-1]) if scale is None else scale
        common, rest = layout.split
        if not common:
            return self._tiles(kernel, q_BLHD, k_BCHD, v_BCHD, layout, scale)
        everyone = Tile(0, layout.n_queries, common)
        partial = self._tile(kernel, q_BLHD, k_BCHD, v_BCHD, everyone, scale)
        if not rest.tiles:
            return partial
        return merge(partial, self._tiles(kernel, q_BLHD, k_BCHD, v_BCHD, rest, scale))

    def _tiles(
        self,
        kernel: Kernel,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        layout: BlockLayout,
        scale: float,
    ) -> AttentionState:
        """Every tile by itself, or with its equals where they are small."""
        if len(layout.tiles) == 1 and layout.covers_all_queries:
            return self._tile(kernel, q_BLHD, k_BCHD, v_BCHD, layout.tiles[0], scale)
        B, L, H, D = q_BLHD.shape
        lse_dtype = torch.float64 if q_BLHD.dtype == torch.float64 else torch.float32
        if layout.covers_all_queries:
            out = torch.empty_like(q_BLHD, memory_format=torch.contiguous_format)
            lse = q_BLHD.new_empty((B, H, L), dtype=lse_dtype)
        else:
            out = torch.zeros_like(q_BLHD, memory_format=torch.contiguous_format)
            lse = q_BLHD.new_full((B, H, L), -math.inf, dtype=lse_dtype)
        for number, group in enumerate(layout.uniform_groups):
            work = B * H * D * group[0].n_queries * group[0].n_keys
            if len(group) > 1 and work < SMALL_TILE_WORK[q_BLHD.device.type]:
                queries, keys = self._group_indices(layout, number, q_BLHD.device)
                self._group(kernel, q_BLHD, k_BCHD, v_BCHD, queries, keys, scale, out, lse)
                continue
            for tile in group:
                partial = self._tile(kernel, q_BLHD, k_BCHD, v_BCHD, tile, scale)
                out[:, tile.start : tile.stop] = partial.out_BLHD
                lse[:, :, tile.start : tile.stop] = partial.lse_BHL
        return AttentionState(out, lse)

    def _tile(
        self, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float
    ) -> AttentionState:
        """One kernel call. A tile whose keys stand together is attended in place, uncopied."""
        k_BHCD, v_BHCD = (_ranges(x.transpose(1, 2), tile) for x in (k, v))
        q_BHLD = q[:, tile.start : tile.stop].transpose(1, 2)
        out_BHLD, lse_BHL = kernel(q_BHLD, k_BHCD, v_BHCD, scale)
        return AttentionState(out_BHLD.transpose(1, 2), lse_BHL)

    def _group(
        self,
        kernel: Kernel,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries_NL: Tensor,
        keys_NC: Tensor,
        scale: float,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """Equal tiles as a batch; the copies of keys and values stay below ``gather_bytes``."""
        B, _, H, D = q.shape
        per_tile = 2 * B * H * D * keys_NC.shape[1] * q.element_size()
        chunk = max(1, self.gather_bytes // per_tile)
        for rows_NL, columns_NC in zip(queries_NL.split(chunk), keys_NC.split(chunk), strict=True):
            n = rows_NL.shape[0]
            rows = rows_NL.flatten()
            batch = [
                x.index_select(1, index.flatten()).view(B * n, -1, H, D).transpose(1, 2)
                for x, index in ((q, rows_NL), (k, columns_NC), (v, columns_NC))
            ]
            out_BHLD, lse_BHL = kernel(batch[0], batch[1], batch[2], scale)
            del batch  # or the next copies would stand beside these
            out.index_copy_(1, rows, out_BHLD.transpose(1, 2).reshape(B, -1, H, D))
            lse_BHnL = lse_BHL.view(B, n, H, -1).transpose(1, 2)
            lse.index_copy_(2, rows, lse_BHnL.reshape(B, H, -1))

    def _group_indices(
        self, layout: BlockLayout, number: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Token indices ``[n, queries]`` and ``[n, keys]`` of a group, built once per layout."""
        # The layout is kept beside its indices, so that its id is not given to another one.
        found = self._indices.get((id(layout), number, device))
        if found is None:
            group = layout.uniform_groups[number]
            queries = torch.stack([torch.arange(tile.start, tile.stop) for tile in group])
            keys = torch.stack([torch.cat([torch.arange(*r) for r in tile.keys]) for tile in group])
            found = (layout, queries.to(device), keys.to(device))
            self._indices[id(layout), number, device] = found
        return found[1], found[2]


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
