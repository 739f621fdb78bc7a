"""Puts a plan on a transformer through diffusers' hooks, after a trial on the meta device.

diffusers itself only warns about a tensor of an unexpected rank and leaves it whole, which then
computes something else than asked for. So every plan is tried first: the real module tree runs
once with meta tensors, and every split and gather is held against what it would really meet.
"""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import apply_context_parallel
from diffusers.hooks.context_parallel import remove_context_parallel
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelOutput,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lvsa.cp_plans.base import ModelPlan
from lvsa.errors import PlanError
from lvsa.shards import FrameGrid


@dataclass
class AppliedPlan:
    """A plan at work on a transformer. `remove` takes its hooks away again."""

    transformer: nn.Module
    plan: ModelPlan
    world: int
    _active: bool = field(default=True, repr=False)

    def remove(self) -> None:
        """Restores the transformer; a second call does nothing."""
        if self._active:
            remove_context_parallel(self.transformer, self.plan.plan)
            self._active = False


def apply_plan(
    transformer: nn.Module, plan: ModelPlan, mesh: DeviceMesh, grid: FrameGrid
) -> AppliedPlan:
    """Validates a plan and installs it.

    Args:
        transformer: a diffusers transformer, its weights loaded or not.
        plan: see `lvsa.cp_plans`.
        mesh: one-dimensional, over the ranks that the sequence is cut among.
        grid: the token grid of the video.

    Raises:
        PlanError: where the plan does not fit the transformer; nothing is installed then.
    """
    if mesh.ndim != 1:
        raise PlanError(f"the mesh has {mesh.ndim} dimensions; a sequence is cut along exactly 1")
    validate_plan(transformer, plan, grid)
    config = ContextParallelConfig(ring_degree=mesh.size())
    # The hooks only ask for the flattened mesh; `setup` would want one with two dimensions.
    config._flattened_mesh = mesh
    apply_context_parallel(transformer, config, plan.plan)
    return AppliedPlan(transformer, plan, mesh.size())


def validate_plan(transformer: nn.Module, plan: ModelPlan, grid: FrameGrid) -> None:
    """Holds a plan against the real module tree and the real shapes, without arithmetic.

    Raises:
        PlanError: for an unknown module, argument or output, a tensor of another rank than
            expected, or a dimension that does not divide; all problems in one message.
    """
    problems: list[str] = []
    modules: dict[str, nn.Module] = {}
    for path, entry in plan.plan.items():
        try:
            module = transformer.get_submodule(path)
        except AttributeError:
            near = difflib.get_close_matches(path, [n for n, _ in transformer.named_modules()], 3)
            problems.append(
                f"{path!r} is no module of {type(transformer).__name__}"
                + (f"; near: {', '.join(near)}" if near else "")
            )
            continue
        modules[path] = module
        problems += [f"{path or 'the root'}: {p}" for p in _argument_problems(module, entry)]
    if not problems:
        seen = trial_run(transformer, modules, plan.inputs(transformer, grid))
        for path, entry in plan.plan.items():
            problems += [
                f"{path or 'the root'}: {p}"
                for p in _shape_problems(entry, *seen[path], tokens=grid.tokens)
            ]
    if problems:
        raise PlanError(
            f"context-parallel plan {plan.name!r} does not fit {type(transformer).__name__}:\n  "
            + "\n  ".join(problems)
        )


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


def trial_run(
    transformer: nn.Module, modules: dict[str, nn.Module], inputs: dict[str, Tensor | None]
) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """One forward on the meta device; named arguments and outputs of ``modules`` as they were."""
    seen: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    handles = []
    for path, module in modules.items():

        def record(
            module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path
        ) -> None:
            bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
            outputs = list(output) if isinstance(output, tuple | list) else [output]
            seen.setdefault(path, (dict(bound.arguments), outputs))

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    # Only shapes count: one dtype, so that weights in half precision meet the float32 inputs.
    state = {
        name: tensor.to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)
        for named in (transformer.named_parameters, transformer.named_buffers)
        for name, tensor in named()
    }
    try:
        with torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(transformer, state, args=(), kwargs=dict(inputs))
    finally:
        for handle in handles:
            handle.remove()
    missing = [path for path in modules if path not in seen]
    if missing:
        raise PlanError(
            f"{', '.join(map(repr, missing))} did not run in a forward of "
            f"{type(transformer).__name__}; a plan cannot split what is not called"
        )
    return seen


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
