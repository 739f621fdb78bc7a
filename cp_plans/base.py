"""A context-parallel plan: how one model's sequence is cut among ranks, as data.

A plan maps module paths to diffusers' own types: which forward argument (by name) or output (by
index) is split on which dimension, and where the parts are gathered again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models._modeling_parallel import ContextParallelModelPlan
from torch import Tensor, nn

from lvsa.shards import FrameGrid

Inputs = dict[str, Tensor | None]


@dataclass(frozen=True)
class ModelPlan:
    """The plan of one model, and inputs to try it on.

    Args:
        name: name of the model family.
        splits: module path → splits or gather, in diffusers' types.
        inputs: forward arguments of the transformer for a video of the given token grid. They are
            made on the meta device: only their shapes count, and no arithmetic is done.
    """

    name: str
    splits: dict[str, ContextParallelModelPlan]
    inputs: Callable[[nn.Module, FrameGrid], Inputs]


def patch_sizes(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns per token, in either way that diffusers' configs say it.

    ``patch_size`` is all three, or rows and columns alike beside ``patch_size_t``, which may
    be missing: 1.
    """
    if isinstance(config.patch_size, int):
        p_t = getattr(config, "patch_size_t", None) or 1
        return p_t, config.patch_size, config.patch_size
    p_t, p_h, p_w = config.patch_size
    return p_t, p_h, p_w


def latents_shape(transformer: Any, grid: FrameGrid) -> tuple[int, int, int, int, int]:
    """``[1, C, frames, height, width]`` of the latents that give this token grid."""
    config = transformer.config
    p_t, p_h, p_w = patch_sizes(config)
    return 1, config.in_channels, grid.frames * p_t, grid.rows * p_h, grid.columns * p_w


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A meta tensor of this shape."""
    return torch.empty(shape, dtype=dtype, device="meta")
