"""A loaded pipeline made ready for its device: LoRAs, tiling, caches, offloading, compiling.

All of it before LVSA, which then meets the pipeline as it will run. The order matters: a LoRA is
merged on the CPU, to the same bits on every rank; a cache stands outside of what moves a block's
weights, so that a block that is skipped is not moved, and inside of what moves a whole model, which
diffusers puts around it anew after every video.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from lvsa.errors import LVSAError
from lvsa.launch.config import TuningConfig
from lvsa.launch.loading.lora import FoundLoRA, merge_loras
from lvsa.launch.tuning.caches import CACHES, check_cache, enable_cache, parse_cache

logger = logging.getLogger(__name__)

COMPILER = "inductor"
# Classes of blocks to compile, of transformers that do not name theirs.
BLOCKS = {"CogVideoXTransformer3DModel": ["CogVideoXBlock"]}


def check_tuning(tuning: TuningConfig, pipe: Any) -> None:
    """Stops for what a pipeline cannot do, before its weights are loaded.

    Args:
        pipe: skeleton of the pipeline.

    Raises:
        LVSAError: for a cache that does not work for it, or a VAE without tiling.
    """
    if tuning.cache is not None:
        check_cache(tuning.cache, type(pipe).__name__)
    if tuning.vae_tiling and not hasattr(pipe.vae, "enable_tiling"):
        raise LVSAError(
            f"--vae-tiling: {type(pipe.vae).__name__} has no tiling; --offload model keeps the "
            "transformer out of memory while it decodes"
        )


def tuning_without_effect(
    tuning: TuningConfig, steps: int, device: torch.device, tiled_anyway: bool
) -> list[tuple[bool, str]]:
    """Settings that change nothing for a video of so many steps: whether that is so, and why."""
    cache = None if tuning.cache is None else CACHES[parse_cache(tuning.cache)[0]]
    return [
        (
            cache is not None and steps < cache.steps,
            f"--cache {tuning.cache}: skips nothing in {steps} steps",
        ),
        (
            tuning.offload != "none" and device.type == "cpu",
            f"--offload {tuning.offload}: the device is the CPU, where weights are anyway",
        ),
        (tuning.vae_tiling and tiled_anyway, "--vae-tiling: this model decodes in tiles anyway"),
    ]


def loads_to(
    tuning: TuningConfig, loras: Sequence[FoundLoRA], device: torch.device
) -> torch.device:
    """Where weights are read to: the device, so that the host need not hold what each rank has.

    Offloaded ones stay in the host's memory, and those that a LoRA is merged into begin there.
    """
    return torch.device("cpu") if tuning.offload != "none" or loras else device


def prepare(
    pipe: Any,
    tuning: TuningConfig,
    loras: Sequence[FoundLoRA],
    transformers: dict[str, nn.Module],
    device: torch.device | None,
) -> None:
    """Makes a pipeline ready, and brings it to its device.

    Args:
        pipe: with its weights, where `loads_to` says.
        loras: from `lvsa.launch.loading.lora.check_loras`.
        transformers: of the pipeline, by attribute.
        device: of this rank; None where whoever calls brings the pipeline there.

    Raises:
        CheckpointError: for a LoRA that cannot be merged.
    """
    merge_loras(loras, pipe, transformers)
    if tuning.vae_tiling:
        pipe.vae.enable_tiling()
    if device is not None and tuning.offload == "none":
        pipe.to(device)
    if device is not None and tuning.offload == "group":
        offload_groups(pipe, transformers, device)
    if tuning.cache is not None:
        enable_cache(tuning.cache, pipe, transformers)
    if tuning.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    if tuning.compile:
        compile_blocks(transformers)


def offload_groups(pipe: Any, transformers: dict[str, nn.Module], device: torch.device) -> None:
    """Keeps weights on the CPU: a transformer's by blocks, every other network's by layers.

    On CUDA the next block arrives while one is computed; that pins all weights in memory.
    """
    for part in pipe.components.values():
        if not isinstance(part, nn.Module):
            continue
        denoises = any(part is transformer for transformer in transformers.values())
        apply_group_offloading(
            part,
            onload_device=device,
            offload_type="block_level" if denoises else "leaf_level",
            num_blocks_per_group=1 if denoises else None,
            use_stream=denoises and device.type == "cuda",
        )


def compile_blocks(transformers: dict[str, nn.Module]) -> None:
    """Compiles the blocks that a transformer repeats, one graph for all of them."""
    for transformer in transformers.values():
        model: Any = transformer
        if not model._repeated_blocks:
            model._repeated_blocks = BLOCKS[type(model).__name__]
        model.compile_repeated_blocks(backend=COMPILER)
