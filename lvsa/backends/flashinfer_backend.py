"""The FlashInfer backend: one launch for all tiles of a block, over pages of its own buffer.

FlashInfer's batch prefill attends many requests at once, each over pages of a shared buffer that
its own table lists. Here a request is a tile and the buffer is the block, read where it stands:
nothing is gathered. Pages are the largest power of two of tokens that every range begins and ends
on, down to a single token, so that no page holds a token that is not attended, whatever P is and
wherever shards cut. FlashInfer's block-sparse wrappers do the same inside with pages of one token.

Tables are planned once per layout and serve all layers. Written against FlashInfer's signatures
and tested with a stand-in for its documented semantics; no GPU has run it.
"""

import logging
import math
import re
from collections import OrderedDict
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.backends.pages import MOST_TOKENS_A_PAGE, PageTables, page_tables
from lvsa.backends.tile_by_tile import nothing_attended
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.layout import BlockLayout, full_layout
from lvsa.merge import AttentionState, merge_into

logger = logging.getLogger(__name__)

SINCE, BEFORE = (0, 6, 18), (0, 8)
"""Versions of FlashInfer: from the first with pages in cute-dsl, to the next unknown one."""
HEAD_DIMS = (64, 128, 256)
CUTE_DSL_LEAST = 8
"""Tokens that a page of cute-dsl holds at least."""
WORKSPACE_BYTES = 128 << 20
"""What FlashInfer recommends for the partial results of split ranges; one for each device."""
PLANS_KEPT = 24
"""Plans with their tables on the device, 8 MiB and more each; a step of denoising uses one for each
block."""
KERNELS = ("fa2", "fa3", "cute-dsl")


class FlashInferBackend(Backend):
    """Block-sparse attention with FlashInfer's batch prefill over pages.

    Args:
        library: the module flashinfer.
        capability: compute capability of the GPU.
        kernel: one of `KERNELS`; the rule decides without it, see `choose_kernel`.
    """

    name = "flashinfer"

    def __init__(
        self,
        library: ModuleType | Any,
        capability: tuple[int, int],
        kernel: str | None = None,
    ) -> None:
        self.library, self.capability, self.kernel = library, capability, kernel
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._kernels: set[str] = set()

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        if kernel is not None and kernel not in KERNELS:
            raise LVSAError(
                f"backend 'flashinfer' has no kernel {kernel!r}; known: {', '.join(KERNELS)}"
            )
        if device.type != "cuda" or torch.version.hip:
            raise BackendUnavailable(
                f"backend 'flashinfer' runs on NVIDIA GPUs, not on {device.type}"
            )
        return cls(_library(), torch.cuda.get_device_capability(device), kernel)

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        # For whole pages; it may be another for layouts that come in smaller ones.
        kernel, reason = choose_kernel(
            self.capability, dtype, head_dim, MOST_TOKENS_A_PAGE, self.kernel
        )
        ran = f"; so far {', '.join(sorted(self._kernels))}" if self._kernels else ""
        return f"{self.name} {self.library.__version__}: {kernel}, {reason}{ran}"

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
        if not layout.tiles:
            return nothing_attended(q_BLHD) if state is None else state
        plan = self._plan(q_BLHD, layout, scale)
        found = plan.run(q_BLHD, k_BCHD, v_BCHD)
        return merge_into(state, found, None if more else q_BLHD.dtype)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        layout = _full_layout(q_BLHD.shape[1], k_BCHD.shape[1])
        return self.attend(q_BLHD, k_BCHD, v_BCHD, layout, scale, state, more)

    def _plan(self, q: Tensor, layout: BlockLayout, scale: float | None) -> "_Plan":
        key = id(layout), q.device, q.dtype, q.shape[2:], scale
        plan = self._plans.get(key)
        if plan is None:
            tables = page_tables(layout)
            kernel, reason = choose_kernel(
                self.capability, q.dtype, q.shape[-1], tables.page, self.kernel
            )
            if kernel not in self._kernels:
                logger.info("flashinfer: kernel %s, %s", kernel, reason)
                self._kernels.add(kernel)
            plan = _Plan(self.library, kernel, layout, tables, q, scale)
            self._plans[key] = plan
            if len(self._plans) > PLANS_KEPT:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan


class _Plan:
    """FlashInfer's wrapper with the tables of one layout on the device."""

    def __init__(
        self,
        library: ModuleType | Any,
        kernel: str,
        layout: BlockLayout,
        tables: PageTables,
        q: Tensor,
        scale: float | None,
    ) -> None:
        self.layout = layout  # kept, so that no other layout takes its id
        self.tables = tables
        H, D = q.shape[2:]
        self.wrapper = library.BatchPrefillWithPagedKVCacheWrapper(
            _workspace(q.device), "NHD", backend=kernel
        )
        self.wrapper.plan(
            tables.query_starts,
            tables.page_starts,
            tables.pages,
            tables.last_page_tokens,
            H,
            H,
            D,
            tables.page,
            causal=False,
            sm_scale=1 / math.sqrt(D) if scale is None else scale,
            q_data_type=q.dtype,
            kv_data_type=q.dtype,
            o_data_type=q.dtype,
        )

    def run(self, q_BLHD: Tensor, k_BCHD: Tensor, v_BCHD: Tensor) -> AttentionState:
        """A launch for each batch element, which is one nearly always."""
        B, L, H, _ = q_BLHD.shape
        if k_BCHD.stride() != v_BCHD.stride():
            # The kernel of Hopper takes one set of strides for both.
            k_BCHD, v_BCHD = k_BCHD.contiguous(), v_BCHD.contiguous()
        out = torch.empty_like(q_BLHD, memory_format=torch.contiguous_format)
        lse_BLH = q_BLHD.new_empty((B, L, H), dtype=torch.float32)
        for b in range(B):
            cache = self._pages(k_BCHD[b]), self._pages(v_BCHD[b])
            self.wrapper.run(
                q_BLHD[b].contiguous(), cache, out=out[b], lse=lse_BLH[b], return_lse=True
            )
        # FlashInfer's log-sum-exp has base 2.
        lse_BHL = lse_BLH.mul_(math.log(2)).transpose(1, 2)
        for start, stop in self.tables.unattended:
            out[:, start:stop] = 0
            lse_BHL[:, :, start:stop] = -math.inf
        return AttentionState(out, lse_BHL)

    def _pages(self, x_CHD: Tensor) -> Tensor:
        """``[pages, page, H, D]``: a view of the tokens that fill whole pages."""
        page = self.tables.page
        return x_CHD[: x_CHD.shape[0] // page * page].unflatten(0, (-1, page))


def choose_kernel(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    page: int,
    asked: str | None = None,
) -> tuple[str, str]:
    """FlashInfer's kernel for a layout, and why it is this one.

    FlashInfer's own choice knows Hopper and takes fa2 everywhere else, so that Blackwell is named
    here.

    Args:
        page: tokens of the layout's pages.
        asked: name of a kernel, which is taken or refused.

    Raises:
        BackendUnavailable: for a dtype, head dimension, GPU or page that the kernel does not take.
    """
    if dtype not in (torch.float16, torch.bfloat16) or head_dim not in HEAD_DIMS:
        raise BackendUnavailable(
            f"backend 'flashinfer' takes float16 and bfloat16 with head dimensions "
            f"{', '.join(map(str, HEAD_DIMS))}; these are {dtype} with {head_dim}"
        )
    major, minor = capability
    if major < 8:
        raise BackendUnavailable(
            f"backend 'flashinfer' begins with sm_80; this GPU is sm_{major}{minor}"
        )
    fits = {"fa2": "FlashAttention 2 runs from sm_80 on"}
    if major == 9:
        fits = {"fa3": "FlashAttention 3 is for Hopper"} | fits
    if major == 10 and head_dim <= 128:
        if page >= CUTE_DSL_LEAST:
            fits = {"cute-dsl": "the one for Blackwell"} | fits
        else:
            fits["fa2"] = (
                f"cute-dsl wants ranges on multiples of {CUTE_DSL_LEAST} tokens, and these are on "
                f"multiples of {page}"
            )
    if asked is None:
        return next(iter(fits.items()))
    if asked not in fits:
        raise BackendUnavailable(
            f"backend 'flashinfer:{asked}' does not run on sm_{major}{minor} with head dimension "
            f"{head_dim} and ranges on multiples of {page} tokens; there: {', '.join(fits)}"
        )
    return asked, "asked for by name"


def _library() -> ModuleType:
    """FlashInfer, in a version that has what is needed.

    Raises:
        BackendUnavailable: names the extra, or the version that is installed and those that fit.
    """
    wanted = f">={_dotted(SINCE)},<{_dotted(BEFORE)}"
    extra = "pip install 'lvsa-launcher[flashinfer]'"
    try:
        library = import_module("flashinfer")
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'flashinfer' needs flashinfer-python{wanted}: {extra} ({error})"
        ) from error
    found = tuple(int(part) for part in re.findall(r"\d+", library.__version__)[:3])
    if not SINCE <= found < BEFORE:
        raise BackendUnavailable(
            f"backend 'flashinfer' needs flashinfer-python{wanted}, and {library.__version__} is "
            f"installed: {extra}"
        )
    return library


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@lru_cache(maxsize=PLANS_KEPT)
def _full_layout(n_queries: int, n_keys: int) -> BlockLayout:
    """One layout object for all calls of a size, so that they share a plan."""
    return full_layout(n_queries, n_keys)


@cache
def _workspace(device: torch.device) -> Tensor:
    """Scratch memory of FlashInfer on a device, shared by everything that runs on it in turn."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
