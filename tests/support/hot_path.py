"""Guards for code that runs in every layer of every step: nothing may be planned there.

They know the engine by its classes, not by paths, so that modules may be moved and renamed.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # The first use of a dispatch mode imports it, and it uses numpy.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lvsa
from lvsa.backends import Backend
from lvsa.exchange import EXCHANGES
from lvsa.pattern import Pattern
from lvsa.shards import FrameGrid, Shards
from lvsa.tiles import Tile, TileGroup


class Planned(AssertionError):
    """Something was planned in the hot path."""


class Forbidden:
    """Stands in for a module: any use of it is an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise Planned(f"{self._name}.{attribute} was used in the hot path")


def modules_with_numpy() -> list[ModuleType]:
    """Loaded modules of the engine that use numpy."""
    engine = Path(lvsa.__file__).resolve().parent
    return [
        module
        for name, module in sys.modules.items()
        # Other rooms are links beside the engine: their files are elsewhere.
        if name.startswith(f"{lvsa.__name__}.")
        and Path(inspect.getsourcefile(module) or "").resolve().is_relative_to(engine)
        and any(value is np for value in vars(module).values())
    ]


@contextmanager
def no_numpy() -> Iterator[list[str]]:
    """Takes numpy from every loaded module of the engine; yields their names."""
    robbed = modules_with_numpy()
    with pytest.MonkeyPatch.context() as patch:
        for module in robbed:
            for attribute, value in list(vars(module).items()):
                if value is np:
                    patch.setattr(module, attribute, Forbidden(attribute))
        yield [module.__name__ for module in robbed]


# What may run at any time of modules that plan: numbers that are there already, and the token
# indices of batched tiles.
CHEAP = (
    Pattern.offset,
    Pattern.n_offsets,
    Pattern.frames,
    Shards.local_tokens,
    FrameGrid.tokens,
    FrameGrid.tokens_per_frame,
    Tile.n_queries,
    Tile.n_keys,
    TileGroup.n_queries,
    TileGroup.n_keys,
    TileGroup.query_tokens,
    TileGroup.key_tokens,
)


def planners() -> set[str | None]:
    """Files of the modules that plan: those that use numpy, but for exchanges and backends."""
    run_time = {cls.__module__ for exchange in EXCHANGES.values() for cls in exchange.__mro__}
    backends = Backend.__module__.rpartition(".")[0]
    return {
        inspect.getsourcefile(module)
        for module in modules_with_numpy()
        if module.__name__ not in run_time and not module.__name__.startswith(backends)
    }


# Methods of tensors that need not pass the dispatcher.
HOST_READS = {"tolist", "item", "numpy", "cpu"}


def code_of(function: Any) -> CodeType:
    return inspect.unwrap(getattr(function, "fget", function)).__code__


@contextmanager
def no_planning() -> Iterator[None]:
    """Forbids functions that plan, and all of numpy's that Python can see being called."""
    cheap = {code_of(function) for function in CHEAP}
    # Comprehensions and generators in a cheap function belong to it.
    cheap |= {c for code in cheap for c in code.co_consts if isinstance(c, CodeType)}
    forbidden = {
        code_of(function)
        for cls in EXCHANGES.values()
        for function in (cls.plan, cls.received_tokens, cls.__init__)
    }
    planning = planners()
    numpy = str(inspect.getsourcefile(np)).removesuffix("__init__.py")

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            plans = code.co_filename in planning and code not in cheap
            if plans or code in forbidden or code.co_filename.startswith(numpy):
                raise Planned(f"{code.co_qualname} was called in the hot path")
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            rooms = type(owner).__module__, (getattr(argument, "__module__", None) or "")
            of_numpy = "numpy" in [room.split(".")[0] for room in rooms]
            reads = isinstance(owner, torch.Tensor) and argument.__name__ in HOST_READS
            if of_numpy or reads:
                raise Planned(f"{argument.__name__} was called in the hot path")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


class NoSynchronization(TorchDispatchMode):
    """Forbids operations that read a device from the host, or bring tables to it."""

    names = frozenset(
        {
            "_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal",
            "unique_dim", "_unique2", "lift_fresh", "_to_copy",
        }
    )  # fmt: skip

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:])
        )
        if by_mask or name in self.names:
            raise Planned(f"{name} was called in the hot path")
        return function(*args, **(kwargs or {}))


@contextmanager
def hot_path() -> Iterator[None]:
    """All the guards at once."""
    with ExitStack() as stack:
        stack.enter_context(no_numpy())
        stack.enter_context(NoSynchronization())
        stack.enter_context(no_planning())
        yield
