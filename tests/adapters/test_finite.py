"""Generations that leave the numbers end in the step where they do, on every rank."""

import pytest
import torch
from torch import distributed as dist

import lvsa
from lvsa.errors import NonFiniteError
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_pipeline

SIZE = {"num_frames": 33, "height": 32, "width": 48}


def generate(pipe, steps=3):
    return pipe(
        prompt="a red circle",
        **SIZE,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames


def broken_from(pipe, step):
    """The scheduler divides by zero from a step on."""
    calls, own = [], pipe.scheduler.step

    def spoiled(*args, **kwargs):
        calls.append(0)
        (latents,) = own(*args, **kwargs)
        return (latents / 0 if len(calls) > step else latents,)

    pipe.scheduler.step = spoiled
    return pipe


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_step_is_named(step):
    pipe = broken_from(wan_pipeline(), step)
    with lvsa.enable(pipe), refuses(NonFiniteError, f"step {step}", "float32"):
        generate(pipe)


def test_a_session_goes_on_after_it():
    pipe = wan_pipeline()
    own = generate(pipe)
    with lvsa.enable(pipe, settings=lvsa.LVSASettings(horizon=99)) as session:
        session.finite.check("left over", torch.ones(1))
        torch.testing.assert_close(generate(pipe), own, rtol=1e-5, atol=1e-5)


def on_ranks(rank, world):
    pipe = broken_from(wan_pipeline(), 1)
    with lvsa.enable(pipe), refuses(NonFiniteError, "step 1"):
        generate(pipe)
    dist.barrier()


def test_every_rank_stops_in_the_same_step():
    run_ranks(2, on_ranks)
