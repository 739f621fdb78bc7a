"""Denoising that stopped after any step and goes on: the same bits, whatever the scheduler."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders import AdaptiveProjectedGuidance

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint.loop import DenoisingLoop, LoopState
from lvsa.launch.checkpoint.snapshot import attributes, restore
from lvsa.launch.checkpoint.values import Unsaveable, pack, unpack
from tests.support.errors import refuses
from tests.support.loops import SCHEDULERS, Model, denoised, pipeline

CPU = torch.device("cpu")


def seeded():
    return torch.Generator().manual_seed(1)


def states_of(name, steps=6):
    """A loop's result, and its state after every step, as a file would hold it."""
    torch.manual_seed(0)
    kept, generator, pipe = [], seeded(), pipeline(name)
    loop = DenoisingLoop(
        pipe,
        [],
        [generator],
        CPU,
        listener=lambda state, _: kept.append(pack(vars(state())).copied()),
    )
    with loop.followed():
        result = denoised(pipe, Model(), generator, steps)
    return result, kept


def gone_on(name, packed, model, steps=6):
    # Whatever was drawn meanwhile is no matter.
    torch.manual_seed(5)
    generator, pipe = seeded(), pipeline(name)
    state = LoopState(**unpack(packed, CPU))
    with DenoisingLoop(pipe, [model], [generator], CPU, state).followed():
        return denoised(pipe, model, generator, steps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_from_every_step(name):
    torch.manual_seed(0)
    undisturbed, model = denoised(pipeline(name), Model(), seeded()), Model()
    result, kept = states_of(name)
    assert torch.equal(result, undisturbed), "being watched changes nothing"
    # Some, as Heun's, step more than once for a step.
    assert len(kept) >= 6
    for steps, packed in enumerate(kept, 1):
        model.calls = 0
        assert torch.equal(gone_on(name, packed, model), undisturbed)
        assert model.calls == len(kept) - steps, "steps that were done are not computed"


@pytest.mark.parametrize("lost", ["scheduler", "random", "result"])
def test_each_part_of_the_state_counts(lost):
    """What a checkpoint without one of them would come to."""
    name = {"random": "EulerAncestralDiscreteScheduler"}.get(lost, "UniPCMultistepScheduler")
    result, kept = states_of(name)
    assert torch.equal(gone_on(name, kept[3], Model()), result)
    generator, pipe, model = seeded(), pipeline(name), Model()
    state = LoopState(**unpack(kept[3], CPU))
    if lost == "scheduler":
        state.scheduler.values["model_outputs"][-1].zero_()
    elif lost == "random":
        state.random["given"] = [torch.Generator().manual_seed(2).get_state()]
    else:
        state.result[0].add_(0.01)
    with DenoisingLoop(pipe, [model], [generator], CPU, state).followed():
        assert not torch.equal(denoised(pipe, model, generator), result)


def test_nothing_is_left_on_scheduler_and_model():
    _, kept = states_of("UniPCMultistepScheduler")
    pipe, model = pipeline("UniPCMultistepScheduler"), Model()
    before = inspect.signature(pipe.scheduler.step)
    forward = torch.nn.Module.__call__
    loop = DenoisingLoop(pipe, [model], [], CPU, LoopState(**unpack(kept[1], CPU)))
    loop._start.random["given"].clear()
    with loop.followed():
        assert inspect.signature(pipe.scheduler.step) == before
        denoised(pipe, model, seeded())
        assert "forward" not in vars(model), "given back as soon as steps are real"
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))
    assert torch.nn.Module.__call__ is forward


def test_a_compiled_model_is_not_asked_either():
    """`Module.compile` calls no `forward` of the instance that could be replaced."""
    _, kept = states_of("DDIMScheduler")
    pipe, model = pipeline("DDIMScheduler"), Model()
    asked = []

    def compiled(*args, **kwargs):
        asked.append(1)
        return torch.nn.Module._call_impl(model, *args, **kwargs)

    model._compiled_call_impl = compiled
    loop = DenoisingLoop(pipe, [model], [seeded()], CPU, LoopState(**unpack(kept[3], CPU)))
    with loop.followed():
        denoised(pipe, model, seeded())
    assert len(asked) == 2 and model._compiled_call_impl is compiled


def test_a_loop_that_is_too_short_for_its_checkpoint():
    _, kept = states_of("DDIMScheduler")
    with refuses(CheckpointError, 5, 3):
        gone_on("DDIMScheduler", kept[4], Model(), steps=3)


def test_a_checkpoint_of_another_scheduler():
    _, kept = states_of("DDIMScheduler")
    with refuses(CheckpointError, "DDIMScheduler", "DDPMScheduler"):
        gone_on("DDPMScheduler", kept[1], Model())


def test_a_scheduler_that_returns_something_else():
    loop = DenoisingLoop(SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler()), [], [], CPU)
    with refuses(Unsaveable, "FlowMatchEulerDiscreteScheduler", "dict"):
        loop.state({"prev_sample": torch.ones(1)})


def test_guiders_keep_their_averages():
    """Adaptive projected guidance with momentum: an object in the guider holds a tensor."""

    def guided(guider, first, last):
        generator = seeded()
        for step in range(last):
            cond, uncond = (torch.randn(1, 2, 3, generator=generator) for _ in range(2))
            guider.set_state(step=step, num_inference_steps=last, timestep=torch.tensor(1.0))
            if step == first == 0:
                guider.prepare_inputs({"x": (cond, uncond)})
            if step >= first:
                result = guider.forward(cond, uncond).pred
        return result

    options = {"guidance_scale": 3.0, "adaptive_projected_guidance_momentum": -0.5}
    guider, undisturbed = (AdaptiveProjectedGuidance(**options) for _ in range(2))
    guided(guider, 0, 3)
    saved = unpack(pack(attributes(guider)).copied(), CPU)
    assert isinstance(saved.values["momentum_buffer"].values["running_average"], torch.Tensor)
    later = AdaptiveProjectedGuidance(**options)
    later.set_state(step=0, num_inference_steps=5, timestep=torch.tensor(1.0))
    later.prepare_inputs({"x": (torch.zeros(1), torch.zeros(1))})
    restore(later, saved)
    assert torch.equal(guided(later, 3, 5), guided(undisturbed, 0, 5))
