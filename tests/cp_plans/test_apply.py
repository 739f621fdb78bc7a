"""Plans at work: tensors are cut among ranks and gathered again, or refused."""

import contextlib

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lvsa.cp_plans import get_plan
from lvsa.cp_plans.apply import apply_plan
from lvsa.errors import PlanError
from tests.support.errors import refuses
from tests.support.plans import Toy, changed, gather, hooks_of, split, toy_plan
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_transformer

WAN = get_plan("wan")
X = torch.arange(48.0).reshape(1, 12, 4)


def two_dimensions(rank, world):
    mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("a", "b"))
    model = wan_transformer()
    with refuses(PlanError, 2, 1):
        apply_plan(model, WAN, mesh)
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

    def forward():
        with torch.no_grad():
            return model(**inputs)[0]

    before = forward()
    with refuses(PlanError, "'block.0'"):
        apply_plan(model, changed(WAN, block__0={"hidden_states": split()}), mesh)
    assert not hooks_of(model), "nothing is installed after an error"
    assert torch.equal(forward(), before)

    applied = apply_plan(model, WAN, mesh)
    assert hooks_of(model) == ["rope", "blocks.0", "proj_out"]
    seen = []
    hook = model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    during = forward()
    hook.remove()
    assert seen == [(1, 72 // world, 24)], "the sequence was cut"
    assert during.shape == before.shape, "and gathered"
    assert not torch.equal(during, before), "stock attention over a cut sequence is another one"
    applied.remove()
    applied.remove()
    assert not hooks_of(model)
    assert torch.equal(forward(), before)


def positions_and_outputs(rank, world):
    """By keyword or by position, one output or several, in a list or not at all."""
    mesh = init_device_mesh("cpu", (world,))
    toy = Toy()
    mine = X[:, rank * 6 : rank * 6 + 6]
    applied = apply_plan(toy, toy_plan(pair={1: split(output=True)}), mesh)
    assert torch.equal(toy(X), 2 * X)
    first, second = toy.pair(X)
    assert torch.equal(first, X) and torch.equal(second, -mine)
    assert second.untyped_storage().nbytes() == mine.nbytes, "the rest is free"
    assert torch.equal(toy.inner(hidden_states=X), 2 * mine)
    assert torch.equal(toy.inner(X, scale=None), 2 * mine)
    applied.remove()

    applied = apply_plan(toy, toy_plan(inner={"scale": [split(), split()]}), mesh)
    toy.inner.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {"scale": kwargs["scale"][1]}), with_kwargs=True
    )
    assert torch.equal(toy.inner(mine, scale=[X, X]), mine * mine)
    applied.remove()

    toy = Toy()
    applied = apply_plan(toy, toy_plan(pair=[gather(), None], inner={0: split(output=True)}), mesh)
    first, second = toy.pair(mine)
    assert torch.equal(first, X) and torch.equal(second, -mine)
    assert torch.equal(toy.inner(X), 2 * mine)
    applied.remove()


def what_cannot_be_cut(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for plan, x, values in (
        (toy_plan(4), X, ["inner", "'hidden_states'", "(1, 12, 4)", 3, 4]),
        (toy_plan(), X[:, :11], ["inner", "'hidden_states'", "(1, 11, 4)", 11, world]),
    ):
        toy = Toy()
        applied = apply_plan(toy, plan, mesh)
        with refuses(PlanError, *values):
            toy(x)
        applied.remove()


def on_two_ranks(rank, world):
    two_dimensions(rank, world)
    apply_and_remove(rank, world)
    positions_and_outputs(rank, world)
    what_cannot_be_cut(rank, world)


def test_on_two_ranks():
    run_ranks(2, on_two_ranks)


def half_of_the_ranks(rank, world):
    """Two videos at a time, each cut among two ranks: each pair has only itself to wait for."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "frames"))["frames"]
    assert isinstance(mesh, DeviceMesh) and mesh.size() == 2
    toy, x = Toy(), X + rank // 2
    with contextlib.ExitStack() as stack:
        if rank < 2:
            # The other pair comes later, and is not waited for.
            stack.callback(apply_plan(toy, toy_plan(), mesh).remove)
            assert torch.equal(toy(x), 2 * x)
        dist.barrier()
        if rank >= 2:
            stack.callback(apply_plan(toy, toy_plan(), mesh).remove)
            assert torch.equal(toy(x), 2 * x)


def test_ranks_that_share_a_video_need_no_others():
    run_ranks(4, half_of_the_ranks)


def test_the_toy_is_whole_without_a_plan():
    """The control of the tests above."""
    assert torch.equal(Toy()(X), 2 * X)
