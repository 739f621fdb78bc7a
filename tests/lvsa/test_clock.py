"""The clock reads denoising steps off real schedulers."""

import functools
import inspect

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from lvsa.clock import StepClock
from lvsa.errors import LVSAError
from tests.support.errors import refuses

SCHEDULERS = {
    "flow match Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPC": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "DDIM": DDIMScheduler,
}


def denoise(scheduler, clock, steps, passes=2):
    """A denoising loop; the clock's step at each forward pass, and the result."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 3, 3, generator=generator)
    scheduler.set_timesteps(steps)
    seen = []
    for t in scheduler.timesteps:
        for _ in range(passes):
            seen.append(clock.step if clock else None)
        sample = scheduler.step(0.1 * sample, t, sample, return_dict=False)[0]
    return seen, sample


@pytest.mark.parametrize("name", SCHEDULERS)
def test_counts_the_steps_of_every_generation(name):
    moves = []
    clock = StepClock(moves.append)
    scheduler = SCHEDULERS[name]()
    clock.attach(scheduler)
    assert moves == [0]
    assert denoise(scheduler, clock, 3)[0] == [0, 0, 1, 1, 2, 2]
    assert denoise(scheduler, clock, 2, passes=1)[0] == [0, 1]
    assert moves == [0, 0, 1, 2, 3, 0, 1, 2]
    assert clock.generations == 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_computes_what_it_did(name):
    _, expected = denoise(SCHEDULERS[name](), None, 4)
    clock = StepClock(lambda step: None)
    scheduler = SCHEDULERS[name]()
    clock.attach(scheduler)
    assert torch.equal(denoise(scheduler, clock, 4)[1], expected)
    clock.detach()
    assert torch.equal(denoise(scheduler, None, 4)[1], expected)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_detach_gives_the_scheduler_its_methods_back(name):
    scheduler, other = SCHEDULERS[name](), SCHEDULERS[name]()
    before = dict(vars(scheduler))
    moves = []
    clock = StepClock(moves.append)
    clock.attach(scheduler)
    assert {"step", "set_timesteps"} <= set(vars(scheduler))
    assert not {"step", "set_timesteps"} & set(vars(other)), "others of its class are untouched"
    clock.detach()
    clock.detach()
    assert vars(scheduler).keys() == before.keys()
    assert scheduler.step.__func__ is type(scheduler).step
    moves.clear()
    denoise(scheduler, clock, 2)
    assert moves == []


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pipelines_still_see_what_the_scheduler_takes(name):
    """They choose arguments by the signatures of these two methods."""
    scheduler = SCHEDULERS[name]()
    before = [inspect.signature(f) for f in (scheduler.step, scheduler.set_timesteps)]
    StepClock(lambda step: None).attach(scheduler)
    assert [inspect.signature(f) for f in (scheduler.step, scheduler.set_timesteps)] == before


def test_further_listeners_hear_every_move():
    first, second = [], []
    clock = StepClock(first.append)
    clock.listeners.append(second.append)
    scheduler = SCHEDULERS["DDIM"]()
    clock.attach(scheduler)
    denoise(scheduler, clock, 2)
    assert first == second == [0, 0, 1, 2]


def test_attaching_again_changes_nothing():
    moves = []
    clock = StepClock(moves.append)
    scheduler = SCHEDULERS["DDIM"]()
    clock.attach(scheduler)
    scheduler.set_timesteps(3)
    sample = torch.zeros(1)
    scheduler.step(sample, scheduler.timesteps[0], sample)
    generations = clock.generations
    clock.attach(scheduler)
    assert (clock.step, clock.generations) == (1, generations)
    assert moves == [0, 0, 1]


def test_a_scheduler_that_was_swapped_in_is_followed():
    """As diffusers users do: pipe.scheduler = Other.from_config(pipe.scheduler.config)."""
    clock = StepClock(lambda step: None)
    first, second = SCHEDULERS["UniPC"](), SCHEDULERS["flow match Euler"]()
    clock.attach(first)
    denoise(first, clock, 2)
    assert clock.step == 2
    second.set_timesteps(3)
    clock.attach(second)  # at the first forward, after its timesteps were set
    assert clock.step == 0
    assert not {"step", "set_timesteps"} & set(vars(first))
    denoise(first, clock, 2)
    assert clock.step == 0
    assert denoise(second, clock, 3, passes=1)[0] == [0, 1, 2]


# Others on the same scheduler


def wrapped_by_others(scheduler):
    """What another library may do to a scheduler that it was given."""
    step = scheduler.step

    @functools.wraps(step)
    def watched_step(*args, **kwargs):
        return step(*args, **kwargs)

    scheduler.step = watched_step
    return scheduler


def test_a_second_clock_is_refused_and_takes_nothing_away():
    scheduler = SCHEDULERS["UniPC"]()
    first, second = StepClock(lambda step: None), StepClock(lambda step: None)
    first.attach(scheduler)
    with refuses(LVSAError, "UniPCMultistepScheduler"):
        second.attach(scheduler)
    second.detach()
    assert denoise(scheduler, first, 3, passes=1)[0] == [0, 1, 2]
    with refuses(LVSAError, "UniPCMultistepScheduler"):
        second.attach(wrapped_by_others(scheduler))
    first.detach()
    second.attach(scheduler)
    assert denoise(scheduler, second, 3, passes=1)[0] == [0, 1, 2]


def test_a_clock_under_anothers_wrapper_counts_until_it_is_detached():
    moves = []
    clock = StepClock(moves.append)
    scheduler = SCHEDULERS["DDIM"]()
    clock.attach(scheduler)
    theirs = wrapped_by_others(scheduler).step
    assert denoise(scheduler, clock, 2, passes=1)[0] == [0, 1]
    clock.detach()
    assert scheduler.step is theirs, "which is not ours to take away"
    moves.clear()
    denoise(scheduler, None, 2)
    assert moves == []
    clock.attach(scheduler)
    assert denoise(scheduler, clock, 2, passes=1)[0] == [0, 1], "counted once, not twice"


def test_guards_stop_the_scheduler_before_it_moves():
    clock = StepClock(lambda step: None)
    scheduler = SCHEDULERS["DDIM"]()
    clock.attach(scheduler)
    denoise(scheduler, clock, 2)
    timesteps, generations = scheduler.timesteps, clock.generations
    clock.guards.append(lambda: 1 / 0)
    sample = torch.zeros(1)
    for call in (
        lambda: scheduler.set_timesteps(5),
        lambda: scheduler.step(sample, scheduler.timesteps[0], sample),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    assert torch.equal(scheduler.timesteps, timesteps)
    assert (clock.step, clock.generations) == (2, generations)
