"""Plans are held against the real modules before anything is trusted to them."""

from functools import partial

import pytest
import torch
from torch import nn

from lvsa.cp_plans import get_plan
from lvsa.cp_plans.trial import check_modules, meta_twin, validate_plan
from lvsa.errors import PlanError
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.plans import changed, gather, hooks_of, split
from tests.support.tiny import wan_transformer

GRID = FrameGrid(12, 2, 3)  # 72 tokens
WAN = get_plan("wan")
change = partial(changed, WAN)


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
    with refuses(PlanError, "blocks.0", 4):
        validate_plan(model, change(blocks__0={"hidden_states": split(dims=4)}), GRID)


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (change(block__0={"hidden_states": split()}), ["'block.0'", "near: ", "blocks.0"]),
        (change(zzzzzz=gather()), ["'zzzzzz'"]),
        (change(blocks__0={"hidden": split()}), ["'hidden'", "hidden_states, encoder_hidden"]),
        (
            change(blocks__0={"hidden_states": split(dims=4)}),
            ["'hidden_states'", "(1, 72, 24)", 3, 4],
        ),
        (change(blocks__0={"hidden_states": split(dim=2)}), ["(1, 72, 24)", 24, 2, 72]),
        (change(blocks__0={"hidden_states": split(dim=5, dims=None)}), ["(1, 72, 24)", 5]),
        (change(blocks__0={"rotary_emb": split()}), ["'rotary_emb'", "tuple"]),
        (change(blocks__0={"hidden_states": [split(), split()]}), ["'hidden_states'", 2, "Tensor"]),
        (change(blocks__0={"rotary_emb": [split(dims=4)]}), ["'rotary_emb'", 1, 2]),
        (change(blocks__0={"hidden_states": split(output=True)}), ["'hidden_states'", "split_out"]),
        (
            change(rope={0: split(dims=4, output=True), 2: split(dims=4, output=True)}),
            ["rope", "output 2", 2],
        ),
        (change(rope={0: split(dims=4)}), ["rope", "output 0", "split_output"]),
        (change(rope={0: split(output=True)}), ["rope", "output 0", "(1, 72, 1, 12)", 4, 3]),
        (change(proj_out=[gather(), gather()]), ["proj_out", 2, 1]),
        (change(proj_out=gather(dim=2)), ["proj_out", "(1, 72, 16)", 16, 2, 72]),
        (change(proj_out=gather(dims=4)), ["proj_out", "(1, 72, 16)", 3, 4]),
        (change(**{"": {"timestep": split(dims=2)}}), ["root", "'timestep'", "(1,)", 1, 2]),
        (change(**{"": {"attention_kwargs": split()}}), ["root", "'attention_kwargs'", "NoneType"]),
    ],
)
def test_what_does_not_fit_is_named(plan, names):
    model = wan_transformer()
    with refuses(PlanError, "'wan'", "WanTransformer3DModel", *names):
        validate_plan(model, plan, GRID)
    assert not hooks_of(model), "nothing of the trial stays behind"


def test_names_are_checked_without_a_size():
    check_modules(wan_transformer(), change(blocks__0={"hidden_states": split(dims=4)}))
    with refuses(PlanError, "'zzzzzz'"):
        check_modules(wan_transformer(), change(zzzzzz=gather()))


def test_a_list_of_splits_is_held_against_each_tensor():
    good = change(blocks__0={"rotary_emb": [split(dims=4), split(dims=4)]})
    validate_plan(wan_transformer(), good, GRID)
    bad = change(blocks__0={"rotary_emb": [split(dims=4), split(dim=3, dims=4)]})
    with refuses(PlanError, 12, 3, 72):
        validate_plan(wan_transformer(), bad, GRID)


def test_all_problems_come_in_one_message():
    plan = change(blocks__0={"hidden_states": split(dims=4)}, proj_out=gather(dim=2))
    with pytest.raises(PlanError) as caught:
        validate_plan(wan_transformer(), plan, GRID)
    assert len(str(caught.value).splitlines()) == 3


def test_a_module_that_does_not_run_cannot_be_split():
    model = wan_transformer()
    model.spare = nn.Identity()
    with refuses(PlanError, "'spare'", "WanTransformer3DModel"):
        validate_plan(model, change(spare=gather()), GRID)


def test_the_twin_has_the_tree_without_what_is_installed_on_it():
    model = wan_transformer().half()
    model.again = model.blocks[0]
    forwards = []
    model.blocks[0].register_forward_pre_hook(lambda *_: forwards.append("hook"))
    model.blocks[1].forward = lambda *args, **kwargs: forwards.append("replaced")
    twin = meta_twin(model)
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    assert twin.again is twin.blocks[0], "a module that stands twice is one module"
    for name, weight in model.state_dict().items():
        assert twin.state_dict()[name].shape == weight.shape
    assert {x.device.type for x in twin.state_dict().values()} == {"meta"}
    assert {x.dtype for x in twin.parameters()} == {torch.float32}
    validate_plan(model, WAN, GRID)
    assert forwards == []
