"""Nested plain values and tensors as JSON with named tensors, and back: no code, no pickle."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvsa.errors import LVSAError


class Unsaveable(LVSAError):
    """A value that cannot be written as JSON and tensors; the message says where it stands."""


@dataclass(frozen=True)
class Attributes:
    """The attributes of an object of some class, which is not made anew: see `snapshot.restore`."""

    of: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """A value in two parts.

    Args:
        plain: what JSON can hold; a tensor's place is taken by its name.
        tensors: by name, as they were given: not copied, on their devices.
    """

    plain: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def copied(self, over: "Packed | None" = None) -> "Packed":
        """The same with copies of the tensors on the CPU, which may still be on their way there.

        An accelerator's stream is not waited for: see `torch.Event`.

        Args:
            over: earlier copies that are needed no more, whose memory is taken where it fits.
        """
        # Each by itself: some are views of others, which safetensors does not write.
        free = {} if over is None else over.tensors
        copies = {name: _copied(x, free.get(name)) for name, x in self.tensors.items()}
        return Packed(self.plain, copies)


def pack(value: Any) -> Packed:
    """A nested value of plain values, lists, tuples, dicts, tensors, arrays and `Attributes`.

    A tensor that stands in several places is one tensor afterwards, too.

    Raises:
        Unsaveable: for anything else.
    """
    packed = Packed(None)
    plain = _Packer(packed.tensors).plain(value, "")
    return Packed(plain, packed.tensors)


def unpack(packed: Packed, device: torch.device) -> Any:
    """The value that was packed.

    Args:
        device: where tensors go that were not on the CPU.
    """
    return _value(packed, packed.plain, device)


def _copied(tensor: Tensor, over: Tensor | None) -> Tensor:
    tensor = tensor.detach()
    if over is not None and (over.shape, over.dtype) == (tensor.shape, tensor.dtype):
        return over.copy_(tensor, non_blocking=True)
    if tensor.device.type == "cpu":
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous().to("cpu", non_blocking=True)


class _Packer:
    """Makes names for tensors; holds each tensor once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.names: dict[int, str] = {}

    def plain(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, np.generic):
            return {"scalar": value.dtype.name, "value": self.plain(value.item(), where)}
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            return {"tensor": self.name(value, where), "device": value.device.type}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return {"array": self.name(torch.from_numpy(value.copy()), where)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Attributes):
            return {"attributes": value.of, "value": self.plain(value.values, where)}
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if type(value) in (list, tuple):
            items = [self.plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if isinstance(value, dict):
            entries = value.items()
            return {
                "dict": [[self.plain(k, where), self.plain(v, f"{where}.{k}")] for k, v in entries]
            }
        raise Unsaveable(f"{where.lstrip('.')} is a {type(value).__name__}, which cannot be saved")

    def name(self, tensor: Tensor, where: str) -> str:
        if tensor.device.type == "meta" or tensor.layout is not torch.strided:
            raise Unsaveable(f"{where.lstrip('.')} is a tensor without values, or a sparse one")
        known = self.names.get(id(tensor))
        if known is None:
            known = self.names[id(tensor)] = f"{len(self.tensors)}{where}"
            self.tensors[known] = tensor
        return known


def _value(packed: Packed, plain: Any, device: torch.device) -> Any:
    def inside(part: Any) -> Any:
        return _value(packed, part, device)

    if isinstance(plain, list):
        return [inside(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        tensor = packed.tensors[plain["tensor"]]
        return tensor if plain["device"] == "cpu" else tensor.to(device)
    if "array" in plain:
        return packed.tensors[plain["array"]].numpy()
    if "tuple" in plain:
        return tuple(inside(item) for item in plain["tuple"])
    if "size" in plain:
        return torch.Size(plain["size"])
    if "dict" in plain:
        return {inside(key): inside(value) for key, value in plain["dict"]}
    if "attributes" in plain:
        return Attributes(plain["attributes"], inside(plain["value"]))
    if "scalar" in plain:
        return np.dtype(plain["scalar"]).type(inside(plain["value"]))
    if "float" in plain:
        return float(plain["float"])
    return getattr(torch, plain["dtype"])
