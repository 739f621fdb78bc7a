"""Noise is drawn and inputs are encoded once, on one rank, and sent to the others.

Ranks that draw for themselves may draw different noise (other generators, other kernels), and a
text encoder may return other bits on another device. Here the pipeline's own methods run on the
first rank of the group, and all ranks go on with what it got. Where each holds a part of an encoder
all run them, and go on with that just the same.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.comm import group_rank, group_size
from lvsa.wrapping import wrap_method


class _Slot(NamedTuple):
    """Where a tensor stood in a result: it travels by itself, without pickling."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device_type: str


class Replication:
    """Methods of a pipeline that run on one rank for all, until `remove`.

    Args:
        pipe: a diffusers pipeline, the same on every rank.
        methods: names of its methods; those that it does not have are left out.
        group: the ranks that share a video; None for one process, where nothing is changed.
        device: where the tensors of this rank live, for those that were on an accelerator.
        together: whether all ranks run the methods, for networks of which each holds a part; what
            the first one gets counts all the same.
    """

    def __init__(
        self,
        pipe: Any,
        methods: Iterable[str],
        group: dist.ProcessGroup | None,
        device: torch.device | str = "cpu",
        together: bool = False,
    ) -> None:
        self.together = together
        self.pipe, self.group, self.device = pipe, group, torch.device(device)
        self.methods: list[str] = []
        self._busy = self._removed = False
        self._undo = ExitStack()
        if group_size(group) == 1:
            return
        for name in methods:
            if hasattr(pipe, name):
                wrapper = self._replicated(getattr(pipe, name))
                self._undo.callback(wrap_method(pipe, name, wrapper))
                self.methods.append(name)

    def remove(self) -> None:
        """Gives the pipeline its own methods back; a second call does nothing."""
        self._removed = True
        self._undo.close()

    def _replicated(self, method: Callable[..., Any]) -> Callable[..., Any]:
        # Pipelines and users read signatures: they must stay to be seen.
        @functools.wraps(method)
        def on_first_rank(*args: Any, **kwargs: Any) -> Any:
            if self._busy or self._removed:
                # Called by another replicated method: that one's result is what travels.
                return method(*args, **kwargs)
            result = None
            if self.together or group_rank(self.group) == 0:
                self._busy = True
                try:
                    result = method(*args, **kwargs)
                finally:
                    self._busy = False
            return self._share(result, list(_generators([*args, *kwargs.values()])))

        return on_first_rank

    def _share(self, result: Any, generators: list[torch.Generator]) -> Any:
        """The first rank's result and generator states, on every rank."""
        # A rank that skipped the drawing must not fall behind in its random numbers: schedulers
        # may draw more of them in the loop. Arrays are pickled, on a group of whatever backend.
        states = [generator.get_state().numpy() for generator in generators]
        result, states = share((result, states), self.group, self.device)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(torch.from_numpy(state))
        return result


def share(value: Any, group: dist.ProcessGroup | None, device: torch.device | str = "cpu") -> Any:
    """The first rank's nested value on every rank of a group; tensors travel by themselves.

    Args:
        value: of tensors, tuples, lists, dicts, and what pickles; only the first rank's counts.
        group: the ranks; None for one process.
        device: where the tensors of this rank live, for those that were on an accelerator.
    """
    if group_size(group) == 1:
        return value
    first = group_rank(group) == 0
    tensors: list[Tensor] = []
    message = [_take_out(value, tensors)]
    dist.broadcast_object_list(message, group=group, group_src=0)
    arrived: list[Tensor] = []
    for slot in _slots(message[0]):
        if first:
            tensor = tensors[len(arrived)].contiguous()
        else:
            place = "cpu" if slot.device_type == "cpu" else device
            tensor = torch.empty(slot.shape, dtype=slot.dtype, device=place)
        dist.broadcast(tensor, group=group, group_src=0)
        arrived.append(tensor)
    return _put_back(message[0], iter(arrived))


def _take_out(value: Any, tensors: list[Tensor]) -> Any:
    """``value`` with slots for its tensors, which are appended to ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Slot(tuple(value.shape), value.dtype, value.device.type)
    if isinstance(value, tuple | list):
        return type(value)([_take_out(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _take_out(item, tensors) for key, item in value.items()}
    return value


def _slots(value: Any) -> Iterable[_Slot]:
    if isinstance(value, _Slot):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _slots(item)
    elif isinstance(value, dict):
        yield from _slots(list(value.values()))


def _put_back(value: Any, tensors: Any) -> Any:
    if isinstance(value, _Slot):
        return next(tensors)
    if isinstance(value, tuple | list):
        return type(value)([_put_back(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _put_back(item, tensors) for key, item in value.items()}
    return value


def _generators(values: Iterable[Any]) -> Iterable[torch.Generator]:
    for value in values:
        if isinstance(value, torch.Generator):
            yield value
        elif isinstance(value, tuple | list):
            yield from _generators(value)
