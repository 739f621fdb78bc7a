"""The NPU backend: the fused attention of torch_npu on Huawei Ascend.

Written after the documentation of torch_npu's operators (Ascend/op-plugin, docs/context:
``npu_fused_infer_attention_score`` and ``npu_fusion_attention``) and tested with a stand-in for
them; no NPU has run it.

The first takes float16 and bfloat16 with head dimensions that are multiples of 16 and returns the
natural log-sum-exp. The second takes float32 too and returns the maximum of the scores and the sum
of their exponentials. Both want contiguous tensors.
"""

from importlib import import_module
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor

from lvsa.backends.tile_by_tile import GATHER_BYTES, Kernel, TileBackend
from lvsa.errors import BackendUnavailable
from lvsa.merge import AttentionState

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class AscendBackend(TileBackend):
    """Block-sparse attention out of calls to the dense kernels of torch_npu.

    Args:
        library: the module torch_npu.
        gather_bytes: most bytes of gathered copies at a time.
    """

    name = "npu"

    def __init__(self, library: ModuleType | Any, gather_bytes: int = GATHER_BYTES) -> None:
        super().__init__(gather_bytes)
        self.library = library

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        cls.refuse(kernel)
        if device.type != "npu":
            raise BackendUnavailable(f"backend 'npu' runs on npu, not on {device.type}")
        try:
            return cls(import_module("torch_npu"))
        except ImportError as error:
            raise BackendUnavailable(
                f"backend 'npu' needs torch_npu, in the version of the installed CANN: {error}"
            ) from error

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        return f"{self.name}: {kernel_name(dtype, head_dim)}"

    def kernel_for(self, q_BLHD: Tensor) -> Kernel:
        name = kernel_name(q_BLHD.dtype, q_BLHD.shape[-1])
        return self._fusion if name == "npu_fusion_attention" else self._fused_infer

    def _fused_infer(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
        out, lse_BHL1 = self.library.npu_fused_infer_attention_score(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            num_heads=q.shape[2],
            num_key_value_heads=q.shape[2],
            input_layout="BSND",
            scale=scale,
            softmax_lse_flag=True,
        )
        return AttentionState(out, lse_BHL1.squeeze(-1))

    def _fusion(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
        out, most_BHL8, sum_BHL8, *_ = self.library.npu_fusion_attention(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            q.shape[2],
            "BSND",
            scale=scale,
        )
        # Each figure stands there eight times.
        return AttentionState(out, most_BHL8[..., 0] + sum_BHL8[..., 0].log())


def kernel_name(dtype: torch.dtype, head_dim: int) -> str:
    """The operator of torch_npu for such queries.

    Raises:
        BackendUnavailable: for a dtype that none takes.
    """
    if dtype not in DTYPES:
        raise BackendUnavailable(
            f"backend 'npu' has no kernel for {dtype}; use float16, bfloat16 or float32, or the "
            "backend 'math'"
        )
    if dtype == torch.float32 or head_dim % 16:
        return "npu_fusion_attention"
    return "npu_fused_infer_attention_score"
