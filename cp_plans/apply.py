"""Puts a plan on a transformer: hooks that cut tensors among ranks and gather them again.

The plan is in diffusers' types, and the hooks are PyTorch's. diffusers has hooks for such plans
too, but they only warn of a tensor of an unexpected rank and leave it whole, which then computes
something else than asked for; and they build process groups of their own, which cannot be done on
some of the ranks alone. These work on any process group and refuse what they cannot cut.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models._modeling_parallel import ContextParallelOutput
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.hooks import RemovableHandle

from lvsa.comm import gathered, group_rank, group_size
from lvsa.cp_plans.base import ModelPlan
from lvsa.cp_plans.trial import check_modules
from lvsa.errors import PlanError


@dataclass
class AppliedPlan:
    """A plan at work on a transformer. `remove` takes its hooks away again."""

    transformer: nn.Module
    plan: ModelPlan
    world: int
    _handles: list[RemovableHandle] = field(default_factory=list, repr=False)

    def remove(self) -> None:
        """Restores the transformer; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()


def apply_plan(transformer: nn.Module, plan: ModelPlan, mesh: DeviceMesh) -> AppliedPlan:
    """Installs a plan. `lvsa.cp_plans.trial.validate_plan` says whether it fits a video's size.

    Args:
        transformer: a diffusers transformer, its weights loaded or not.
        plan: see `lvsa.cp_plans`.
        mesh: one-dimensional, over the ranks that the sequence is cut among.

    Raises:
        PlanError: for a module or an argument that the transformer does not have; nothing is
            installed then.
    """
    if mesh.ndim != 1:
        raise PlanError(f"the mesh has {mesh.ndim} dimensions; a sequence is cut along exactly 1")
    check_modules(transformer, plan)
    group = mesh.get_group()
    applied = AppliedPlan(transformer, plan, mesh.size())
    for path, entry in plan.splits.items():
        module = unwrap_module(transformer.get_submodule(path))
        name = path or type(transformer).__name__
        if isinstance(entry, Mapping):
            hooks = SplitHooks(name, module, entry, group)
            applied._handles += [
                module.register_forward_pre_hook(hooks.before, with_kwargs=True),
                module.register_forward_hook(hooks.after),
            ]
        else:
            gathers = entry if isinstance(entry, list | tuple) else [entry]
            applied._handles.append(
                module.register_forward_hook(GatherHook(name, list(gathers), group))
            )
    return applied


class SplitHooks:
    """Cuts arguments and outputs of one module to this rank's part.

    Args:
        name: path of the module, for messages.
        module: the module.
        entry: argument names, and indices of outputs, with the dimension that each is cut along.
        group: the ranks that the sequence is cut among.
    """

    def __init__(
        self, name: str, module: nn.Module, entry: Mapping[Any, Any], group: dist.ProcessGroup
    ) -> None:
        self.name, self.rank, self.world = name, group_rank(group), group_size(group)
        self.arguments = {key: split for key, split in entry.items() if isinstance(key, str)}
        self.outputs = {key: split for key, split in entry.items() if isinstance(key, int)}
        parameters = [*inspect.signature(type(module).forward).parameters][1:]
        self.positions = {key: parameters.index(key) for key in self.arguments}

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments with this rank's part of those that are cut."""
        args, kwargs = list(args), dict(kwargs)
        for key, split in self.arguments.items():
            position = self.positions[key]
            if key in kwargs:
                kwargs[key] = self._cut(f"argument {key!r}", kwargs[key], split)
            elif position < len(args):
                args[position] = self._cut(f"argument {key!r}", args[position], split)
        return tuple(args), kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output with this rank's part of what is cut of it."""
        if not self.outputs:
            return None
        if isinstance(output, Tensor):
            return self._cut("the output", output, self.outputs[0])
        parts = list(output)
        for index, split in self.outputs.items():
            parts[index] = self._cut(f"output {index}", parts[index], split)
        return tuple(parts)

    def _cut(self, what: str, value: Any, split: Any) -> Any:
        """This rank's part of a tensor, or of each in a list of them."""
        if value is None:
            return None
        if isinstance(split, list | tuple):
            return [self._cut(what, x, one) for x, one in zip(value, split, strict=True)]
        dim, dims = split.split_dim, split.expected_dims
        shape = tuple(value.shape)
        if dims is not None and value.dim() != dims:
            raise PlanError(
                f"{self.name}: {what} has {value.dim()} dimensions {shape}; the plan expects {dims}"
            )
        length, rest = divmod(shape[dim], self.world)
        if rest:
            raise PlanError(
                f"{self.name}: {what} {shape} has {shape[dim]} entries in dimension {dim}, which "
                f"do not divide by {self.world} ranks"
            )
        part = value.narrow(dim, self.rank * length, length)
        # As a view an output's part would keep the whole in memory, for all blocks that read it, as
        # they do rotary tables. The whole of an argument is its caller's, view or not.
        return part.clone() if split.split_output else part


class GatherHook:
    """Puts the ranks' parts of a module's outputs together again, on every rank.

    Args:
        name: path of the module, for messages.
        gathers: for each output the dimension that it was cut along; None leaves it.
        group: the ranks that the sequence is cut among.
    """

    def __init__(
        self, name: str, gathers: list[ContextParallelOutput | None], group: dist.ProcessGroup
    ) -> None:
        self.name, self.gathers, self.group = name, gathers, group

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The whole output from this rank's part."""
        if isinstance(output, Tensor):
            return self._whole(output, self.gathers[0])
        pairs = zip(output, self.gathers, strict=True)
        return tuple(self._whole(part, gather) for part, gather in pairs)

    def _whole(self, part: Tensor, gather: ContextParallelOutput | None) -> Tensor:
        if gather is None:
            return part
        everyone = gathered(part, self.group, f"the output of {self.name}")
        return torch.cat(everyone.unbind(), dim=gather.gather_dim)
