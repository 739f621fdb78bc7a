"""HunyuanVideo 1.5: video and text in one attention, with no word of grid and step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lvsa.serving.vllm_omni.hooks.base import watch
from lvsa.shards import FrameGrid


def install() -> None:
    """Watches the transformer of both pipelines."""
    from vllm_omni.diffusion.models.hunyuan_video import hunyuan_video_15_transformer as model

    watch(model.HunyuanVideo15Transformer3DModel, read)


def read(transformer: Any, arguments: Mapping[str, Any]) -> tuple[FrameGrid, Tensor]:
    """Latents ``[B, C, T, H, W]`` cut into patches, and the timestep."""
    frames, rows, columns = arguments["hidden_states"].shape[2:]
    patch = transformer.patch_size
    grid = FrameGrid(frames // transformer.patch_size_t, rows // patch, columns // patch)
    return grid, arguments["timestep"]
