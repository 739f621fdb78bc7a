"""The automatic backend: a rule of device, dtype, head dimension and what is installed."""

import logging
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lvsa.backends.base import Backend
from lvsa.backends.registry import BACKENDS, get_backend
from lvsa.backends.sdpa import Device, choose_kernel
from lvsa.errors import BackendUnavailable
from lvsa.layout import BlockLayout
from lvsa.merge import AttentionState

logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A backend and what speaks for it."""

    name: str
    reason: str


def candidates(device: torch.device) -> list[str]:
    """Backends that the rule may name on a device, whatever the tensors."""
    names = ["math"]
    if device.type in ("cpu", "cuda"):
        names.append("sdpa")
    if device.type == "npu" and find_spec("torch_npu"):
        names.append("npu")
    if _triton_runs(Device.of(device)):
        names.append("triton")
    return names


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    """The backend that runs such tensors best, as far as is known.

    The rule, the first that holds:

    1. NVIDIA from sm_80 on, Triton installed, a dtype and head dimension that it takes: ``triton``.
    2. Ascend NPU, torch_npu installed, a dtype that it takes: ``npu``.
    3. PyTorch has a fused kernel with a log-sum-exp, as on every CPU: ``sdpa``.
    4. ``math``.
    """
    facts = Device.of(device)
    if _triton_runs(facts) and dtype in _TRITON_DTYPES and head_dim <= 256:
        return Choice("triton", f"one launch for each block of keys on {facts}")
    if device.type == "npu" and find_spec("torch_npu") and dtype in _NPU_DTYPES:
        return Choice("npu", "torch_npu's fused attention")
    try:
        kernel, reason = choose_kernel(facts, dtype, head_dim)
    except BackendUnavailable as error:
        return Choice("math", f"plain PyTorch operations, slow: {error}")
    return Choice("sdpa", f"PyTorch's {kernel} kernel on {facts}: {reason}")


_NPU_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _triton_runs(facts: Device) -> bool:
    return (
        "triton" in BACKENDS
        and facts.capability is not None
        and facts.capability >= (8, 0)
        and find_spec("triton") is not None
    )


@torch.compiler.assume_constant_result
def _name(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    return _chosen(device, dtype, head_dim).name


@cache
def _chosen(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    """The rule for a device of this machine; says so once."""
    choice = choose_backend(device, dtype, head_dim)
    logger.info("backend for %s with D = %d: %s, %s", dtype, head_dim, *choice)
    return choice


class AutoBackend(Backend):
    """The backend that `choose_backend` names for the tensors that arrive.

    Args:
        backends: those that it may name, by name.
    """

    name = "auto"

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.backends = backends

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        cls.refuse(kernel)
        return cls({name: get_backend(name, device) for name in candidates(device)})

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
        return self.backends[_name(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1])]
