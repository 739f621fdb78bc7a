"""Engines of vLLM-Omni on the bundled model, and the same videos by our own pipeline."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lvsa.attention import LVSAttention
from lvsa.clock import StepClock
from lvsa.processor import LVSAProcessor
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid

MODEL = "assets/tiny-wan"
PROMPT, NEGATIVE = "a red circle drifts left", ""
STEPS, GUIDANCE, SHIFT = 3, 3.0, 5.0
BELOW, BEYOND = 33, 161
"""Video frames: 9 latent frames, within the training horizon of 21, and 41."""


@contextmanager
def engine(
    lvsa: dict[str, Any] | None = None, *, dense: bool = False, **more: Any
) -> Iterator[Any]:
    """An engine for the length of the block: in this process, or on several ranks by ``more``.

    Args:
        lvsa: options under ``additional_config["lvsa"]``.
        dense: whether to leave LVSA out.
        more: further arguments of ``Omni``.
    """
    from vllm_omni.entrypoints.omni import Omni

    if not dense:
        more["diffusion_attention_config"] = {"default": {"backend": "LVSA"}}
    if lvsa is not None:
        more["additional_config"] = {"lvsa": lvsa}
    try:
        omni = Omni(model=MODEL, enforce_eager=True, dtype="float32", **more)
        try:
            yield omni
        finally:
            omni.close()
    finally:
        _drop_sockets()


def _drop_sockets() -> None:
    """Closes what engines leave behind, above all those that did not start.

    A message that nobody will take keeps its socket open, and that keeps the process from ending.
    """
    import zmq

    contexts = [found for found in gc.get_objects() if issubclass(type(found), zmq.Context)]
    for context in contexts:
        context.destroy(linger=0)


class Calls(list):
    """What LVSA's layers in this process were called with: layer, step, (q, k, v), output."""


@contextmanager
def watched_layers() -> Iterator[Calls]:
    """Notes every call of LVSA's self-attention for as long as the block runs."""
    from lvsa.serving.vllm_omni.backend import LVSAImpl
    from lvsa.serving.vllm_omni.request import current_step

    forward, calls = LVSAImpl.forward, Calls()

    def noted(self: Any, query: Any, key: Any, value: Any, metadata: Any = None) -> torch.Tensor:
        out = forward(self, query, key, value, metadata)
        if self.dense is None:
            calls.append((self, current_step(), (query, key, value), out))
        return out

    LVSAImpl.forward = noted
    try:
        yield calls
    finally:
        LVSAImpl.forward = forward


def noise(frames: int, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """``[1, 8, T, H, W]`` initial latents of a video."""
    shape = (1, 8, (frames - 1) // 4 + 1, height // 8, width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generated(
    omni: Any, frames: int, height: int = 64, width: int = 64, **more: Any
) -> torch.Tensor:
    """Latents that an engine makes of `noise`."""
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    given = {
        "num_frames": frames,
        "height": height,
        "width": width,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "guidance_scale_provided": True,
        "latents": noise(frames, height, width),
        "output_type": "latent",
        "extra_args": {"sample_solver": "euler", "flow_shift": SHIFT},
    }
    prompt = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    (output,) = omni.generate(prompt, OmniDiffusionSamplingParams(**{**given, **more}))
    return output.images[0]


def install_lvsa(pipe: Any, grid: FrameGrid, settings: LVSASettings) -> None:
    """LVSA on a pipeline of diffusers by its parts, for videos of one grid.

    `lvsa.enable` looks after caches too, of a newer diffusers than vLLM-Omni's.
    """
    from lvsa.adapters import adapter_for
    from lvsa.adapters.install.grids import make_pattern

    adapter = adapter_for(type(pipe))
    attention = LVSAttention(make_pattern(adapter, pipe, grid, settings), grid)
    adapter.install_processor(pipe, LVSAProcessor(adapter, attention))
    StepClock(lambda step: setattr(attention, "step", step)).attach(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)


def ours(frames: int, height: int = 64, width: int = 64, *, settings: LVSASettings) -> torch.Tensor:
    """Latents that diffusers' pipeline makes of `noise` under LVSA."""
    from diffusers import WanPipeline
    from vllm_omni.diffusion.models.wan2_2.scheduling_wan_euler import WanEulerScheduler

    pipe = WanPipeline.from_pretrained(MODEL)
    pipe.scheduler = WanEulerScheduler(shift=SHIFT)
    grid = FrameGrid((frames - 1) // 4 + 1, height // 16, width // 16)
    install_lvsa(pipe, grid, settings)
    return pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=frames,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise(frames, height, width),
        output_type="latent",
    ).frames
