"""Plans and a small module for tests that cut sequences."""

from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from torch import nn

from lvsa.cp_plans import ModelPlan
from lvsa.cp_plans.base import zeros


def split(dim=1, dims=3, output=False):
    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=output)


def gather(dim=1, dims=3):
    return ContextParallelOutput(gather_dim=dim, expected_dims=dims)


def changed(plan, **entries):
    """A plan with some entries exchanged; ``__`` in a name stands for a dot."""
    entries = {path.replace("__", "."): entry for path, entry in entries.items()}
    return ModelPlan(plan.name, {**plan.splits, **entries}, plan.inputs)


def hooks_of(module):
    """Paths of the modules on which anything is installed."""
    return [
        path
        for path, m in module.named_modules()
        if m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_diffusers_hook")
    ]


class Inner(nn.Module):
    def forward(self, hidden_states, scale=None):
        return hidden_states * (2 if scale is None else scale)


class Toy(nn.Module):
    """A sequence in, its double out; and a pair of it on the way."""

    def __init__(self):
        super().__init__()
        self.pair, self.inner, self.out = Pair(), Inner(), nn.Identity()

    def forward(self, hidden_states):
        first, second = self.pair(hidden_states)
        return self.out(self.inner(hidden_states) + 0 * first.sum() + 0 * second.sum())


class Pair(nn.Module):
    def forward(self, x):
        return x, -x


def toy_plan(expected_dims=3, **entries):
    """Cuts what goes into `Toy.inner`, gathers what leaves `Toy.out`."""
    plan = ModelPlan(
        "toy",
        {"inner": {"hidden_states": split(dims=expected_dims)}, "out": gather()},
        lambda model, grid: {"hidden_states": zeros(1, grid.tokens, 4)},
    )
    return changed(plan, **entries)
