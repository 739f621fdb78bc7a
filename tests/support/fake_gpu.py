"""CUDA tensors without a GPU, and a note of the attention operators that they pass through."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lvsa.layout import BlockLayout
from lvsa.studies.bench.fake_gpu import WithoutRuntime, triton_launches


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


@contextmanager
def fake_gpu() -> Iterator[Attention]:
    """A block in which tensors can be made on the device ``cuda``."""
    no_device = patch.object(torch.cuda, "device", lambda index: nullcontext())
    no_launch = triton_launches(lambda kernel, tensors: None)
    with no_device, no_launch, Attention() as mode, WithoutRuntime():
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
    order = layout.order
    if order is not None:
        order = torch.empty(order.shape, dtype=order.dtype, device="cuda")
    return replace(layout, order=order, groups=groups)
