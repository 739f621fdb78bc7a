"""Denoising loops in a few lines, as pipelines have them, for every scheduler of diffusers."""

import inspect
from types import SimpleNamespace

import diffusers
import torch


class Model(torch.nn.Module):
    """Something to denoise with, which counts how often it computes."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, hidden_states, return_dict=True):
        self.calls += 1
        return (torch.sin(1.3 * hidden_states) + 0.1,)


# Those that step from one continuous sample to the next; others sample tokens, or need networks
# of their own kind.
SCHEDULERS = (
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LCMScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UnCLIPScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


def pipeline(name: str) -> SimpleNamespace:
    """What a loop needs of a pipeline."""
    return SimpleNamespace(scheduler=getattr(diffusers, name)())


def denoised(pipe, model, generator, steps: int = 6) -> torch.Tensor:
    """A sample after all steps of a scheduler, from noise of the generator."""
    scheduler = pipe.scheduler
    takes = inspect.signature(scheduler.step).parameters
    sample = torch.randn(1, 4, 3, 4, 4, generator=generator)
    more = {"generator": generator} if "generator" in takes else {}
    scheduler.set_timesteps(steps)
    times, old = scheduler.timesteps, None
    for i, t in enumerate(times):
        scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        output = model(hidden_states=scale(sample, t), return_dict=False)[0]
        if "old_pred_original_sample" in takes:
            before = times[i - 1] if i else None
            sample, old = scheduler.step(output, old, t, before, sample, return_dict=False, **more)
        else:
            sample = scheduler.step(output, t, sample, return_dict=False, **more)[0]
    return sample
