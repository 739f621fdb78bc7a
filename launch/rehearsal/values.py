"""Answers for models and pipelines that ask for values where tensors have none.

They are those of a prompt without padding: all of a mask is true, so that it picks everything, and
its inverse nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.overrides import TorchFunctionMode


class Masks(TorchFunctionMode):
    """Answers what a model asks of its masks; everything else goes on to PyTorch."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.all:
            return True
        if function is Tensor.nonzero:
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        if function is Tensor.__invert__:
            inverse = torch.ops.aten.bitwise_not(*args)
            inverse.picks_nothing = True
            return inverse
        if function is Tensor.__getitem__ and is_mask(args[1]):
            return picked(*args)
        return function(*args, **(kwargs or {}))


class Inputs(TorchFunctionMode):
    """Answers what a pipeline asks of texts, images and steps besides."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.all, torch.equal):
            return True
        if function is Tensor.item and hasattr(args[0], "known"):
            return args[0].known
        if function is Tensor.__bool__:
            return _truth(*args)
        if function is Tensor.__getitem__ and _is_length(args[1]):
            return args[0][:]
        return function(*args, **(kwargs or {}))


def known(value: float) -> Tensor:
    """A number as a tensor that still knows it."""
    tensor = torch.tensor(value)
    tensor.known = value  # type: ignore[attr-defined]
    return tensor


def _truth(x: Tensor) -> bool:
    """Whether something holds; what is not known, like a pixel below zero, does not."""
    try:
        return bool(x.item())
    except DataDependentOutputException:
        return False


def is_mask(index: Any) -> bool:
    """Whether an index is one mask."""
    return isinstance(index, Tensor) and index.dtype == torch.bool


def picked(x: Tensor, mask: Tensor) -> Tensor:
    """``x[mask]``: everything, or nothing by the inverse of a mask."""
    n = 0 if getattr(mask, "picks_nothing", False) else mask.numel()
    return x.new_empty(n, *x.shape[mask.dim() :])


def _is_length(index: Any) -> bool:
    """Whether an index takes as much as a tensor says: all of it, without padding."""
    return isinstance(index, slice) and isinstance(index.stop, Tensor)
