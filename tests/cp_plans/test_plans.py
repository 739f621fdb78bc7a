"""Plans are held against the real modules before anything is installed."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lvsa.cp_plans import BY_CLASS, PLANS, ModelPlan, get_plan, plan_for
from lvsa.cp_plans.apply import apply_plan, validate_plan
from lvsa.cp_plans.base import latents_shape, zeros
from lvsa.errors import PlanError
from lvsa.shards import FrameGrid
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_transformer

GRID = FrameGrid(12, 2, 3)  # 72 tokens
WAN = get_plan("wan")


def split(dim=1, dims=3, output=False):
    return ContextParallelInput(split_dim=dim, expected_dims=dims, split_output=output)


def gather(dim=1, dims=3):
    return ContextParallelOutput(gather_dim=dim, expected_dims=dims)


def changed(plan=WAN, **entries):
    """A plan with some entries exchanged; ``__`` in a name stands for a dot."""
    entries = {path.replace("__", "."): entry for path, entry in entries.items()}
    return ModelPlan(plan.name, {**plan.plan, **entries}, plan.inputs)


def hooks_of(module):
    return [
        path
        for path, m in module.named_modules()
        if m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_diffusers_hook")
    ]


@pytest.mark.parametrize("name", ["wan", "wan-per-token-timesteps"])
@pytest.mark.parametrize("image_dim", [None, 8])
def test_a_plan_that_fits_leaves_no_trace(name, image_dim):
    model = wan_transformer(image_dim=image_dim, added_kv_proj_dim=24 if image_dim else None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    validate_plan(model, get_plan(name), GRID)
    assert not hooks_of(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_weights_need_not_be_loaded():
    with torch.device("meta"):
        model = wan_transformer()
    validate_plan(model, WAN, GRID)
    with pytest.raises(PlanError, match="the plan expects 4"):
        validate_plan(model, changed(blocks__0={"hidden_states": split(dims=4)}), GRID)


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (
            changed(block__0={"hidden_states": split()}),
            "'block.0' is no module of WanTransformer3DModel; near: .*blocks.0",
        ),
        (changed(zzzzzz=gather()), "'zzzzzz' is no module of WanTransformer3DModel$"),
        (
            changed(blocks__0={"hidden": split()}),
            "blocks.0: forward has no argument 'hidden'; it has hidden_states, encoder_hidden",
        ),
        (
            changed(blocks__0={"hidden_states": split(dims=4)}),
            r"argument 'hidden_states' has 3 dimensions \(1, 72, 24\); the plan expects 4",
        ),
        (
            changed(blocks__0={"hidden_states": split(dim=2)}),
            r"\(1, 72, 24\) has 24 entries in dimension 2; the video has 72 tokens",
        ),
        (
            changed(blocks__0={"hidden_states": split(dim=5, dims=None)}),
            r"blocks.0: argument 'hidden_states' \(1, 72, 24\) has no dimension 5",
        ),
        (
            changed(blocks__0={"rotary_emb": split()}),
            "blocks.0: argument 'rotary_emb' is tuple, not a tensor",
        ),
        (
            changed(blocks__0={"hidden_states": [split(), split()]}),
            "argument 'hidden_states' takes a list of 2 tensors for its splits, got Tensor",
        ),
        (
            changed(blocks__0={"rotary_emb": [split(dims=4)]}),
            "argument 'rotary_emb' takes a list of 1 tensors for its splits, got 2",
        ),
        (
            changed(blocks__0={"hidden_states": split(output=True)}),
            "argument 'hidden_states' is to be split, but split_output is set",
        ),
        (
            changed(rope={0: split(dims=4, output=True), 2: split(dims=4, output=True)}),
            "rope: output 2 does not exist; there are 2",
        ),
        (
            changed(rope={0: split(dims=4)}),
            "rope: output 0 is to be split, but split_output is not set",
        ),
        (
            changed(rope={0: split(dims=3, output=True)}),
            r"rope: output 0 has 4 dimensions \(1, 72, 1, 12\); the plan expects 3",
        ),
        (changed(proj_out=[gather(), gather()]), "proj_out: 2 gathers for 1 outputs"),
        (
            changed(proj_out=gather(dim=2)),
            r"proj_out: output 0 \(1, 72, 16\) has 16 entries in dimension 2; the video has 72",
        ),
        (
            changed(proj_out=gather(dims=4)),
            r"proj_out: output 0 has 3 dimensions \(1, 72, 16\); the plan expects 4",
        ),
        (
            changed(**{"": {"timestep": split(dims=2)}}),
            r"the root: argument 'timestep' has 1 dimensions \(1,\); the plan expects 2",
        ),
        (
            changed(**{"": {"attention_kwargs": split()}}),
            "the root: argument 'attention_kwargs' is NoneType, not a tensor",
        ),
    ],
)
def test_what_does_not_fit_is_named(plan, problem):
    model = wan_transformer()
    with pytest.raises(PlanError, match=problem) as caught:
        validate_plan(model, plan, GRID)
    head = "context-parallel plan 'wan' does not fit WanTransformer3DModel:\n  "
    assert str(caught.value).startswith(head)
    assert not hooks_of(model), "nothing of the trial stays behind"


def test_a_list_of_splits_is_held_against_each_tensor():
    good = changed(blocks__0={"rotary_emb": [split(dims=4), split(dims=4)]})
    validate_plan(wan_transformer(), good, GRID)
    bad = changed(blocks__0={"rotary_emb": [split(dims=4), split(dim=3, dims=4)]})
    with pytest.raises(PlanError, match="has 12 entries in dimension 3; the video has 72 tokens"):
        validate_plan(wan_transformer(), bad, GRID)


def test_all_problems_come_in_one_message():
    plan = changed(blocks__0={"hidden_states": split(dims=4)}, proj_out=gather(dim=2))
    with pytest.raises(PlanError) as caught:
        validate_plan(wan_transformer(), plan, GRID)
    assert len(str(caught.value).splitlines()) == 3


def test_a_module_that_does_not_run_cannot_be_split():
    model = wan_transformer()
    model.spare = nn.Identity()
    message = "'spare' did not run in a forward of WanTransformer3DModel; a plan cannot split what"
    with pytest.raises(PlanError, match=message):
        validate_plan(model, changed(spare=gather()), GRID)
    assert not hooks_of(model)


def test_unknown_names():
    with pytest.raises(PlanError, match="no context-parallel plan named 'van'; known: wan, "):
        get_plan("van")
    with pytest.raises(PlanError, match=r"no context-parallel plan for Linear; known: Wan.*add-a"):
        plan_for(nn.Linear(1, 1))


def test_every_class_has_a_plan_that_is_known():
    assert set(BY_CLASS.values()) <= set(PLANS)
    assert all(plan.name == name for name, plan in PLANS.items())


class Derived(WanTransformer3DModel):
    """A user's own."""


def test_a_derived_transformer_takes_the_plan_of_its_base():
    assert plan_for(object.__new__(Derived)) is WAN


def test_trial_inputs():
    assert latents_shape(wan_transformer(), GRID) == (1, 4, 12, 4, 6)
    model = wan_transformer()
    model.register_to_config(patch_size=2)
    assert latents_shape(model, GRID) == (1, 4, 12, 4, 6)
    assert zeros(2, 3).device.type == "meta"


def two_dimensions(rank, world):
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("a", "b"))
    model = wan_transformer()
    with pytest.raises(PlanError, match="the mesh has 2 dimensions; a sequence is cut along exac"):
        apply_plan(model, WAN, mesh, GRID)
    assert not hooks_of(model)


def apply_and_remove(rank, world):
    torch.manual_seed(0)
    model = wan_transformer().eval()
    inputs = {
        "hidden_states": torch.randn(1, 4, 12, 4, 6),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 512, 16),
        "return_dict": False,
    }
    mesh = init_device_mesh("cpu", (world,))
    assert mesh.get_group() is not None

    def forward():
        with torch.no_grad():
            return model(**inputs)[0]

    before = forward()
    broken = changed(blocks__0={"hidden_states": split(dims=4)})
    with pytest.raises(PlanError, match="the plan expects 4"):
        apply_plan(model, broken, mesh, GRID)
    assert not hooks_of(model), "nothing is installed after an error"
    assert torch.equal(forward(), before)

    applied = apply_plan(model, WAN, mesh, GRID)
    seen = []
    hook = model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    during = forward()
    hook.remove()
    assert seen == [(1, 72 // world, 24)], "the sequence was cut"
    assert during.shape == before.shape, "and gathered"
    assert not torch.equal(during, before), "stock attention over a cut sequence is another one"
    applied.remove()
    applied.remove()
    assert torch.equal(forward(), before)
    dist.barrier()


def on_ranks(rank, world):
    two_dimensions(rank, world)
    apply_and_remove(rank, world)


def test_apply_and_remove_on_ranks():
    run_ranks(2, on_ranks)
