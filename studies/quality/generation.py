"""Generation with the tiny Wan: every kind of attention from the same noise."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor

import lvsa
from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import LVSAError
from lvsa.studies.tiny_wan.clips import SIZE

VARIANTS: dict[str, lvsa.LVSASettings | None] = {
    "dense": None,
    "published, fixed": lvsa.LVSASettings(keyframe_placement="published"),
    "published, rotating": lvsa.LVSASettings(keyframe_placement="published", rotate_keyframes=True),
    "even, fixed": lvsa.LVSASettings(keyframe_placement="even"),
    "even, rotating": lvsa.LVSASettings(keyframe_placement="even", rotate_keyframes=True),
}
"""Kinds of attention by name: settings of LVSA, or None for dense attention."""


def load(folder: Path) -> WanPipeline:
    """The pipeline in a folder.

    Raises:
        LVSAError: where there is none.
    """
    if not folder.is_dir():
        raise LVSAError(f"no pipeline at {folder}; studies/tiny_wan/train.py makes one")
    return WanPipeline.from_pretrained(folder)


def video_frames(latent_frames: int) -> int:
    """Video frames that so many latent frames stand for."""
    return 4 * latent_frames - 3


def attention(pipe: WanPipeline, variant: str, latent_frames: int) -> AbstractContextManager[Any]:
    """Context in which the pipeline has the attention of a variant."""
    settings = VARIANTS[variant]
    if settings is None:
        return nullcontext()
    frames = video_frames(latent_frames)
    return lvsa.enable(pipe, num_frames=frames, height=SIZE, width=SIZE, settings=settings)


def generate(
    pipe: WanPipeline,
    captions: Sequence[str],
    *,
    variant: str,
    latent_frames: int,
    seed: int,
    steps: int = TINY_WAN.defaults.steps,
    guidance: float = TINY_WAN.defaults.guidance,
) -> Tensor:
    """Videos ``[B, F, 3, 64, 64]``, 0 to 1.

    Args:
        pipe: the tiny Wan.
        captions: one for each video.
        variant: of `VARIANTS`.
        latent_frames: length.
        seed: of the noise, which also depends on the caption, and on nothing else.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
    """
    generators = [
        torch.Generator().manual_seed(1000 * seed + sum(caption.encode())) for caption in captions
    ]
    with attention(pipe, variant, latent_frames):
        found = pipe(
            list(captions),
            height=SIZE,
            width=SIZE,
            num_frames=video_frames(latent_frames),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        )
    return found.frames.float().cpu()
