"""The Triton backend: a block-sparse flash attention of our own, one launch for a block of keys.

Keys and values are read where they lie, by the layout's tables (`lvsa.strips`): nothing is gathered
or copied, and the running result is merged inside the kernel.
"""

import math
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.backends.triton_shapes import KernelShape, architecture, padded, precision, shape_for
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState
from lvsa.strips import Strips


class TritonBackend(Backend):
    """Block-sparse attention in one kernel. Build it with `on`.

    Args:
        target: the GPU, a key of `triton_shapes.GENERATIONS`.
        shape: of the kernel; the GPU's for the dtype and head dimension without it.
    """

    name = "triton"

    def __init__(self, target: str, shape: KernelShape | None = None) -> None:
        # Here and not above: without Triton this module must still say what to install.
        from lvsa.backends.triton_kernel import attend_strips

        self.kernel = attend_strips
        self.target, self.shape = target, shape

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        cls.refuse(kernel)
        if find_spec("triton") is None:
            raise BackendUnavailable(
                "backend 'triton' needs the package triton, which CUDA builds of PyTorch bring: "
                "pip install triton"
            )
        from lvsa.backends.triton_kernel import INTERPRETED

        return cls("interpreter" if INTERPRETED else architecture(device))

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        shape = self.shape or shape_for(self.target, dtype, head_dim)
        return (
            f"triton for {self.target}: {shape.rows} queries × {shape.keys} keys, "
            f"{shape.warps} warps, {shape.stages} stages"
        )

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
        return self._launch(q_BLHD, k_BCHD, v_BCHD, layout.strips, scale, state, more)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        return self._launch(q_BLHD, k_BCHD, v_BCHD, None, scale, state, more)

    def _launch(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        strips: Strips | None,
        scale: float | None,
        state: AttentionState | None,
        more: bool,
    ) -> AttentionState:
        """The kernel over the strips; without any, every query over every key."""
        B, L, H, D = q.shape
        shape = self.shape or shape_for(self.target, q.dtype, D)
        scale = 1 / math.sqrt(D) if scale is None else scale
        if not scale > 0:
            raise LVSAError(f"scale of the scores is {scale}; backend 'triton' takes any above 0")
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "channels must be contiguous"
        in_place = state is not None and more and _writable(state)
        if state is not None and in_place:
            after = state
        else:
            out = q.new_empty(q.shape, dtype=torch.float32 if more else q.dtype)
            after = AttentionState(out, q.new_empty((B, H, L), dtype=torch.float32))
        before = after if state is None else state
        if strips is None:
            # Of what is not read any tensor will do.
            tables, rows, keys = (after.lse_BHL,) * 3, shape.rows, shape.keys
            n_programs = -(-L // rows)
        else:
            tables = (strips.table, strips.whole_blocks, strips.other_keys)
            rows, keys = strips.rows, strips.keys
            n_programs = len(strips.table) * (rows // shape.rows)
        if not n_programs:
            return after
        with torch.cuda.device(q.device.index) if q.is_cuda else nullcontext():
            self.kernel[n_programs, H, B](
                q, k, v, *after, *before, *tables,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                *before.out_BLHD.stride()[:3], *before.lse_BHL.stride(),
                L, k.shape[1], scale * math.log2(math.e),
                D=D, BLOCK_D=padded(D), ROWS=shape.rows, KEYS=shape.keys,
                STRIP_ROWS=rows, BLOCK_KEYS=keys,
                TABLES=strips is not None, STATE=state is not None, IN_PLACE=in_place,
                PRECISION=precision(self.target, D), WIDEN=self.target == "interpreter",
                num_warps=shape.warps, num_stages=shape.stages, enable_fp_fusion=True,
            )  # fmt: skip
        return after


def _writable(state: AttentionState) -> bool:
    """Whether a kernel can write a running result where this one stands."""
    out, lse = state
    return out.dtype == torch.float32 and out.is_contiguous() and lse.is_contiguous()
