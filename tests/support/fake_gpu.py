"""CUDA tensors without a GPU: shapes, dtypes, strides and devices, no data.

PyTorch's fake tensors take a CUDA device on a build without CUDA. Some calls ask the device's
runtime before they reach the dispatcher (indexing, ``copy_``, ``contiguous``): they are put in
other words here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lvsa.layout import BlockLayout


class Attention(FakeTensorMode):
    """Fake tensors that note the attention operators they pass through.

    Attributes:
        operators: names in order of their calls.
        inputs: queries, keys and values of each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.inputs: list[tuple[Tensor, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if "scaled_dot_product" in function.name():
            self.operators.append(function.name().removeprefix("aten::_scaled_dot_product_"))
            self.inputs.append(args[:3])
        return super().__torch_dispatch__(function, types, args, kwargs)


class _WithoutRuntime(TorchFunctionMode):
    """Indexing, ``copy_`` and ``contiguous`` through operators that fake tensors know."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is Tensor.__getitem__:
            return _index(*args)
        if function is Tensor.__setitem__:
            target, value = _index(*args[:2]), args[2]
            return _copy(target, value) if isinstance(value, Tensor) else target.fill_(value)
        if function is Tensor.copy_:
            return _copy(*args)
        if function is Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))


_copy = torch.ops.aten.copy_.default


def _index(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` for slices, integers, None and one ellipsis."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        given = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (x.dim() - given)
    dim = 0
    for item in items:
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            start, stop, step = item.indices(x.shape[dim])
            x = torch.ops.aten.slice(x, dim, start, stop, step)
        else:
            x = torch.ops.aten.select(x, dim, item)
            continue
        dim += 1
    return x


@contextmanager
def fake_gpu() -> Iterator[Attention]:
    """A block in which tensors can be made on the device ``cuda``."""
    with Attention() as mode, _WithoutRuntime():
        yield mode


def on_gpu(layout: BlockLayout) -> BlockLayout:
    """A layout with its groups' tables on the fake device, where real ones cannot be copied."""
    groups = tuple(
        replace(
            group,
            **{
                name: torch.empty(getattr(group, name).shape, dtype=torch.int64, device="cuda")
                for name in ("first_query", "edges", "jumps")
            },
        )
        for group in layout.groups
    )
    return replace(layout, groups=groups)
