"""The automatic backend: a rule of device, dtype, head dimension and what is installed."""

from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor

from lvsa.backends import triton_shapes
from lvsa.backends.ascend import DTYPES
from lvsa.backends.base import Backend
from lvsa.backends.registry import BACKENDS, get_backend
from lvsa.backends.sdpa import Device, kernels_that_fit
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Name of the backend that runs such tensors best, as far as is known, and why it is this one.

    The rule, the first that holds:

    1. An NVIDIA GPU that the Triton kernel has shapes for (from sm_80 on), Triton installed, a
       dtype and head dimension that it takes: ``triton``.
    2. Ascend NPU, torch_npu installed, a dtype that it takes: ``npu``.
    3. PyTorch has a fused kernel with a log-sum-exp, as on every CPU: ``sdpa``.
    4. ``math``.
    """
    return _choose(Device.of(device), candidates(device), dtype, head_dim)


def candidates(device: torch.device) -> tuple[str, ...]:
    """Backends that the rule may name on a device, by what is installed."""
    facts = Device.of(device)
    names = ["math"]
    if device.type in ("cpu", "cuda"):
        names.append("sdpa")
    if device.type == "npu" and find_spec("torch_npu"):
        names.append("npu")
    known = facts.capability and triton_shapes.nvidia(facts.capability)
    if known in triton_shapes.GENERATIONS and find_spec("triton"):
        names.append("triton")
    return tuple(name for name in names if name in BACKENDS)


def _choose(
    device: Device, names: tuple[str, ...], dtype: torch.dtype, head_dim: int
) -> tuple[str, str]:
    """The rule, on facts alone: it stands in graphs of torch.compile."""
    if "triton" in names and triton_shapes.takes(dtype, head_dim):
        return "triton", f"one launch for each block of keys on {device}"
    if "npu" in names and dtype in DTYPES:
        return "npu", "torch_npu's fused attention"
    fits = kernels_that_fit(device, dtype, head_dim)
    for kernel, reason in fits.items():
        return "sdpa", f"PyTorch's {kernel} kernel on {device}: {reason}"
    near = "; float16 has one there" if kernels_that_fit(device, torch.float16, head_dim) else ""
    return "math", (
        f"slow, as no fused kernel takes {dtype} with head dimension {head_dim} on {device}{near}"
    )


class AutoBackend(Backend):
    """The backend that `choose_backend` names for the tensors that arrive.

    Args:
        device: where the tensors will be.
    """

    name = "auto"

    def __init__(self, device: torch.device) -> None:
        self.device = Device.of(device)
        self.names = candidates(device)
        self.backends = {name: get_backend(name, device) for name in self.names}

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        cls.refuse(kernel)
        return cls(device)

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        name, reason = choose_backend(device, dtype, head_dim)
        return f"auto: {name}, {reason}"

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
        backend = self._for(q_BLHD)
        return backend.attend(q_BLHD, k_BCHD, v_BCHD, layout, scale, state, more)

    def attend_all(
        self,
        q_BLHD: Tensor,
        k_BCHD: Tensor,
        v_BCHD: Tensor,
        scale: float | None = None,
        state: AttentionState | None = None,
        more: bool = False,
    ) -> AttentionState:
        return self._for(q_BLHD).attend_all(q_BLHD, k_BCHD, v_BCHD, scale, state, more)

    def _for(self, q_BLHD: Tensor) -> Backend:
        name, _ = _choose(self.device, self.names, q_BLHD.dtype, q_BLHD.shape[-1])
        return self.backends[name]
