"""The forward that the engine is running: its grid and denoising step, as the model or a hook says.

Wan publishes both; a model that publishes neither has a hook (`lvsa.serving.vllm_omni.hooks`),
whose word is kept on the engine's forward context. That lives as long as one request, so a count of
steps begins at 0 in every one, and nothing is left behind.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm_omni.diffusion.forward_context import get_forward_context, is_forward_context_available

from lvsa.shards import FrameGrid

_ATTRIBUTE = "lvsa_forward"


@dataclass
class VideoForward:
    """What a hook says of a forward of its transformer.

    Args:
        grid: of the video's tokens.
        timestep: the transformer's argument, which tells one step from the next.
        step: the denoising step, counted from 0 in each request.
    """

    grid: FrameGrid
    timestep: Tensor
    step: int = 0


def publish(grid: FrameGrid, timestep: Tensor) -> None:
    """Notes a forward that begins. The step moves on with the timestep, guidance or not."""
    if not is_forward_context_available():
        return
    context = get_forward_context()
    before: VideoForward | None = getattr(context, _ATTRIBUTE, None)
    step = 0
    if before is not None:
        # Passes of one step mostly share the tensor; only where they do not is it read.
        same = before.timestep is timestep or torch.equal(before.timestep, timestep)
        step = before.step if same else before.step + 1
    setattr(context, _ATTRIBUTE, VideoForward(grid, timestep, step))


def current_grid() -> FrameGrid | None:
    """The grid that a hook noted for this forward."""
    forward = _forward()
    return None if forward is None else forward.grid


def current_step() -> int | None:
    """The denoising step about to run: the engine's, or else as a hook counted."""
    if not is_forward_context_available():
        return None
    step = get_forward_context().denoise_step_idx
    forward = _forward()
    return forward.step if step is None and forward is not None else step


def _forward() -> VideoForward | None:
    if not is_forward_context_available():
        return None
    return getattr(get_forward_context(), _ATTRIBUTE, None)
