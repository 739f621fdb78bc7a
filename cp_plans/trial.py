"""Tries a plan on the meta device before it is trusted with a generation.

Every plan is run once with the real module tree and tensors that have shapes alone, and every split
and gather is held against what it meets there: a tensor of another rank, a dimension that is not
the sequence, a module that never runs. A plan that passes cuts what it says it cuts.
"""

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lvsa.cp_plans.base import ModelPlan
from lvsa.errors import PlanError
from lvsa.shards import FrameGrid

Seen = tuple[dict[str, Any], list[Any]]
"""Named arguments of a module's forward and its outputs."""


def check_modules(transformer: nn.Module, plan: ModelPlan) -> None:
    """Holds the names of a plan against a transformer's modules and their arguments.

    Raises:
        PlanError: for an unknown module or argument; all problems in one message.
    """
    _refuse(transformer, plan, list(_name_problems(transformer, plan)))


def validate_plan(transformer: nn.Module, plan: ModelPlan, grid: FrameGrid) -> None:
    """Holds a plan against the real module tree and the real shapes, without arithmetic.

    Raises:
        PlanError: for an unknown module, argument or output, a tensor of another rank than
            expected, or a dimension that does not divide; all problems in one message.
    """
    check_modules(transformer, plan)
    seen = trial_run(transformer, plan, grid)
    _refuse(
        transformer,
        plan,
        [
            f"{path or 'the root'}: {problem}"
            for path, entry in plan.splits.items()
            for problem in _shape_problems(entry, *seen[path], tokens=grid.tokens)
        ],
    )


def trial_run(transformer: nn.Module, plan: ModelPlan, grid: FrameGrid) -> dict[str, Seen]:
    """What the modules of a plan take and return in one forward on the meta device."""
    twin = meta_twin(transformer)
    seen: dict[str, Seen] = {}
    for path in plan.splits:

        def record(
            module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path
        ) -> None:
            bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
            outputs = list(output) if isinstance(output, tuple | list) else [output]
            seen.setdefault(path, (dict(bound.arguments), outputs))

        twin.get_submodule(path).register_forward_hook(record, with_kwargs=True)
    with torch.no_grad(), torch.device("meta"):
        twin(**plan.inputs(transformer, grid))
    missing = [path for path in plan.splits if path not in seen]
    if missing:
        raise PlanError(
            f"{', '.join(map(repr, missing))} did not run in a forward of "
            f"{type(transformer).__name__}; a plan cannot split what is not called"
        )
    return seen


def meta_twin(module: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A module tree of the same classes without weights, hooks, or what runs in place of forward.

    A trial on it leaves no trace, whatever is installed on the module. Weights are in float32, so
    that a model in half precision meets inputs of one dtype.

    Args:
        module: the module, on any device.
        known: twins of modules that were met before; for the recursion.
    """
    known, module = {} if known is None else known, unwrap_module(module)
    if module in known:
        return known[module]
    twin = known[module] = object.__new__(own_class(module))
    nn.Module.__init__(twin)
    vars(twin).update({name: x for name, x in vars(module).items() if not _is_installed(name)})
    for group in ("_parameters", "_buffers"):
        vars(twin)[group] = {name: _without_values(x) for name, x in vars(module)[group].items()}
    vars(twin)["_modules"] = {
        name: None if child is None else meta_twin(child, known)
        for name, child in vars(module)["_modules"].items()
    }
    return twin


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class; of one that FSDP cuts, whose class it replaces, the one it had before."""
    cls = type(module)
    own: type[nn.Module] = cls.__bases__[1] if cls.__bases__[0] is FSDPModule else cls
    return own


# Attributes by which diffusers, accelerate and torch.compile take the place of a module's forward.
INSTALLED = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")
# Parts of names of those that hold hooks, and what FSDP keeps of a module.
KEPT_FOR = ("_hooks", "__composable_api", "_fsdp_")


def _is_installed(name: str) -> bool:
    return name in INSTALLED or any(part in name for part in KEPT_FOR)


def _without_values(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    meta = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


def _refuse(transformer: nn.Module, plan: ModelPlan, problems: list[str]) -> None:
    if problems:
        raise PlanError(
            f"context-parallel plan {plan.name!r} does not fit {type(transformer).__name__}:\n  "
            + "\n  ".join(problems)
        )


def _name_problems(transformer: nn.Module, plan: ModelPlan) -> Iterator[str]:
    for path, entry in plan.splits.items():
        try:
            module = unwrap_module(transformer.get_submodule(path))
        except AttributeError:
            near = difflib.get_close_matches(path, [n for n, _ in transformer.named_modules()], 3)
            yield (
                f"{path!r} is no module of {type(transformer).__name__}"
                + (f"; near: {', '.join(near)}" if near else "")
            )
        else:
            yield from (f"{path or 'the root'}: {p}" for p in _argument_problems(module, entry))


def _argument_problems(module: nn.Module, entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict):
        return
    known = [*inspect.signature(type(module).forward).parameters][1:]
    for key, split in entry.items():
        if isinstance(key, str) and key not in known:
            yield f"forward has no argument {key!r}; it has {', '.join(known)}"
        if isinstance(key, int) and not getattr(split, "split_output", False):
            yield f"output {key} is to be split, but split_output is not set"
        if isinstance(key, str) and getattr(split, "split_output", False):
            yield f"argument {key!r} is to be split, but split_output is set"


def _shape_problems(
    entry: Any, arguments: dict[str, Any], outputs: list[Any], *, tokens: int
) -> Iterator[str]:
    if not isinstance(entry, dict):
        gathers = entry if isinstance(entry, list | tuple) else [entry]
        for i, (gather, output) in enumerate(zip(gathers, outputs, strict=False)):
            if isinstance(gather, ContextParallelOutput):
                yield from _tensor_problems(
                    f"output {i}", output, gather.gather_dim, gather, tokens
                )
        if len(gathers) != len(outputs):
            yield f"{len(gathers)} gathers for {len(outputs)} outputs"
        return
    for key, split in entry.items():
        if isinstance(key, int):
            if key >= len(outputs):
                yield f"output {key} does not exist; there are {len(outputs)}"
                continue
            value, name = outputs[key], f"output {key}"
        else:
            value, name = arguments.get(key), f"argument {key!r}"
        pairs = [(split, value)]
        if isinstance(split, list | tuple):
            if not isinstance(value, list | tuple) or len(value) != len(split):
                held = len(value) if isinstance(value, list | tuple) else type(value).__name__
                yield f"{name} takes a list of {len(split)} tensors for its splits, got {held}"
                continue
            pairs = list(zip(split, value, strict=True))
        for one, tensor in pairs:
            if isinstance(one, ContextParallelInput):
                yield from _tensor_problems(name, tensor, one.split_dim, one, tokens)


def _tensor_problems(name: str, value: Any, dim: int, spec: Any, tokens: int) -> Iterator[str]:
    if not isinstance(value, Tensor):
        yield f"{name} is {type(value).__name__}, not a tensor"
        return
    shape = tuple(value.shape)
    if spec.expected_dims is not None and value.dim() != spec.expected_dims:
        yield (
            f"{name} has {value.dim()} dimensions {shape}; the plan expects {spec.expected_dims}"
        )
    elif not -value.dim() <= dim < value.dim():
        yield f"{name} {shape} has no dimension {dim}"
    elif shape[dim] != tokens:
        yield (
            f"{name} {shape} has {shape[dim]} entries in dimension {dim}; the video has {tokens} "
            "tokens"
        )
