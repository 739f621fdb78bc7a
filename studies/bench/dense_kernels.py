"""Dense attention of other libraries, for comparison: what the sparse kernels are held against."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lvsa.backends import get_backend
from lvsa.errors import BackendUnavailable

Dense = Callable[[Tensor, Tensor, Tensor], object]
"""Attention of every query over every key: q, k, v ``[B, L, H, D]``."""

NAMES = ("sdpa:flash", "sdpa:cudnn", "flash-attn-3", "xfuser:CUDNN", "xfuser:FLASH_3")
WHEELS = {"flash-attn-3": "flash_attn_3 (module flash_attn_interface)", "xfuser": "xfuser"}


def dense_kernel(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Dense:
    """A dense kernel by name: of `NAMES`, or any backend of LVSA's.

    Raises:
        BackendUnavailable: where it is not installed or does not take such tensors.
    """
    library, _, kernel = name.partition(":")
    if name == "flash-attn-3":
        return _module(name, "flash_attn_interface").flash_attn_func
    if library == "xfuser":
        return partial(_heads_first, _of_xfuser(kernel))
    backend = get_backend(name, device)
    backend.check(device, dtype, head_dim)
    return backend.attend_all


def _of_xfuser(kernel: str) -> Callable[..., Any]:
    """A function of xfuser's registry, which takes ``[B, H, L, D]``."""
    module = _module("xfuser", "xfuser.core.distributed.attention_backend")
    for known, function in module.ATTENTION_FUNCTION_REGISTRY.items():
        if known.name == kernel:
            return partial(function, dropout_p=0.0, is_causal=False)
    known = ", ".join(known.name for known in module.ATTENTION_FUNCTION_REGISTRY)
    raise BackendUnavailable(f"xfuser has no attention {kernel!r}; known: {known}")


def _heads_first(function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> object:
    return function(*(x.transpose(1, 2) for x in (q, k, v)))


def _module(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"{name} is not installed; bring the wheel {WHEELS[name]}: {error}"
        ) from error
