"""The automatic backend: a rule of device, dtype, head dimension and what is installed."""

import logging
from contextlib import suppress
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


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Choice:
    """The backend that runs such tensors best, as far as is known.

    The rule, the first that holds:

    1. NVIDIA from sm_80 on, Triton installed, a dtype and head dimension that it takes: ``triton``.
    2. Ascend NPU, torch_npu installed, a dtype that it takes: ``npu``.
    3. PyTorch has a fused kernel with a log-sum-exp, as on every CPU: ``sdpa``.
    4. ``math``.
    """
    facts = Device.of(device)
    if _triton_fits(facts, dtype, head_dim):
        return Choice("triton", f"one launch for each block of keys on {facts}")
    if device.type == "npu" and find_spec("torch_npu") and dtype in _NPU_DTYPES:
        return Choice("npu", "torch_npu's fused attention")
    try:
        kernel, reason = choose_kernel(facts, dtype, head_dim)
    except BackendUnavailable as error:
        return Choice("math", f"plain PyTorch operations, slow: {error}")
    return Choice("sdpa", f"PyTorch's {kernel} kernel on {facts}: {reason}")


CANDIDATES = ("triton", "npu", "sdpa", "math")
"""Backends that the rule may name."""

_NPU_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _triton_fits(facts: Device, dtype: torch.dtype, head_dim: int) -> bool:
    return (
        "triton" in BACKENDS
        and facts.capability is not None
        and facts.capability >= (8, 0)
        and dtype in _TRITON_DTYPES
        and head_dim <= 256
        and find_spec("triton") is not None
    )


class AutoBackend(Backend):
    """The backend that `choose_backend` names for the tensors that arrive."""

    name = "auto"

    def __init__(self) -> None:
        self._names: dict[tuple[torch.device, torch.dtype, int], str] = {}
        self._backends: dict[str, Backend] = {}

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        cls.refuse(kernel)
        auto = cls()
        # All that may be chosen there, now: a graph of torch.compile would end at an import.
        for name in CANDIDATES:
            if name in BACKENDS:
                with suppress(BackendUnavailable):
                    auto._backends[name] = get_backend(name, device)
        return auto

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

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        return f"auto: {': '.join(choose_backend(device, dtype, head_dim))}"

    def describe(self) -> str:
        names = sorted({self._backends[name].describe() for name in self._names.values()})
        return f"{self.name}: {', '.join(names)}" if names else self.name

    def _for(self, q_BLHD: Tensor) -> Backend:
        key = q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1]
        if key not in self._names:
            name = _choose(*key)
            if name not in self._backends:
                self._backends[name] = get_backend(name, q_BLHD.device)
            self._names[key] = name
        return self._backends[self._names[key]]


@torch.compiler.assume_constant_result  # a graph would end at look-ups and messages
def _choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    choice = choose_backend(device, dtype, head_dim)
    logger.info(
        "backend %s for %s, %s, D = %d: %s", choice.name, device, dtype, head_dim, choice.reason
    )
    return choice.name
