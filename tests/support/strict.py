"""Rules that hold for every operator of a forward on a GPU, whatever values there are."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALIGNMENT = 16
"""Bytes that attention kernels load at a time."""


class Strict(TorchDispatchMode):
    """Holds operators to rules, and notes which attention and collectives ran.

    Args:
        dtype: of the model; queries, keys, values and what ranks exchange of them are in it.

    Attributes:
        holds: whether the rules do.
        attention: names of attention operators and Triton kernels, in order.
        exchanged: dtypes of tensors that collectives took.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.holds = dtype, False
        self.attention: list[str] = []
        self.exchanged: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self.holds:
            return function(*args, **(kwargs or {}))
        name = function.name()
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}
        assert len(devices) <= 1, f"{name} mixes devices: {devices}"
        assert "nonzero" not in name and "local_scalar" not in name, f"{name} waits for the device"
        if "scaled_dot_product" in name:
            self._attends(name, args[:3])
        if name.startswith("c10d::"):
            self.exchanged |= {x.dtype for x in tensors}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            assert not isinstance(x, Tensor) or x.dtype != torch.float64, f"{name} makes float64"
        return result

    def triton(self, kernel: str, tensors: list[Tensor]) -> None:
        """Holds the launch of a Triton kernel to the same rules."""
        for x in tensors:
            assert x.is_cuda, f"{kernel} is given a tensor on {x.device}"
        if "attend" in kernel:
            self._attends(kernel, tensors[:3])

    def _attends(self, name: str, qkv: Any) -> None:
        self.attention.append(name.removeprefix("aten::_scaled_dot_product_"))
        for x in qkv:
            assert x.is_cuda, f"{name} on {x.device}"
            assert x.dtype == self.dtype, f"{name} in {x.dtype}, the model is in {self.dtype}"
            assert x.stride(-1) == 1, f"{name}: strides {x.stride()}"
            steps = (n * x.element_size() for n in (x.storage_offset(), *x.stride()[:-1]))
            assert math.gcd(ALIGNMENT, *steps) == ALIGNMENT, f"{name}: strides {x.stride()}"
