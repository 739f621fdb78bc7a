"""The plans of the families: which transformer takes which, and that each fits its own."""

import diffusers
import pytest
from diffusers import WanTransformer3DModel
from torch import nn

from lvsa.cp_plans import BY_CLASS, PLANS, get_plan, plan_for
from lvsa.cp_plans.base import latents_shape, patch_sizes, zeros
from lvsa.errors import PlanError
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.tiny import wan_transformer

GRID = FrameGrid(12, 2, 3)


def test_unknown_names():
    with refuses(PlanError, "'van'", *PLANS):
        get_plan("van")
    with refuses(PlanError, "Linear", *BY_CLASS, "docs/add-a-model.md"):
        plan_for(nn.Linear(1, 1))


def test_every_class_exists_and_has_a_plan_that_is_known():
    for name, plan in BY_CLASS.items():
        assert hasattr(diffusers, name)
        assert get_plan(plan) is PLANS[plan]
    assert all(plan.name == name for name, plan in PLANS.items())


class Derived(WanTransformer3DModel):
    """A user's own."""


def test_a_derived_transformer_takes_the_plan_of_its_base():
    assert plan_for(object.__new__(Derived)) is get_plan("wan")


def test_wans_plans_are_those_of_diffusers():
    """The root's entry cuts per-token timesteps; others would be left whole with a warning."""
    own = WanTransformer3DModel._cp_plan
    assert get_plan("wan-per-token-timesteps").splits == own
    assert get_plan("wan").splits == {path: own[path] for path in own if path}
    assert [*own[""]] == ["timestep"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"patch_size": (1, 2, 2)}, (1, 2, 2)),
        ({"patch_size": 2}, (1, 2, 2)),
        ({"patch_size": 2, "patch_size_t": None}, (1, 2, 2)),
        ({"patch_size": 1, "patch_size_t": 2}, (2, 1, 1)),
    ],
)
def test_patch_sizes_in_either_way(config, expected):
    assert patch_sizes(type("Config", (), config)) == expected


def test_trial_inputs():
    assert latents_shape(wan_transformer(), GRID) == (1, 4, 12, 4, 6)
    assert zeros(2, 3).device.type == "meta"
