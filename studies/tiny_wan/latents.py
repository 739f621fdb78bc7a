"""Data of the second stage: clips drawn once and kept as latents of the VAE."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from tqdm import tqdm

from lvsa.errors import LVSAError
from lvsa.studies.tiny_wan import checkpoints, chunks
from lvsa.studies.tiny_wan.clips import random_clip, render

logger = logging.getLogger(__name__)

SHARD = 200
"""Clips in a file."""
BATCH = 10
"""Clips encoded at once."""


@dataclass(frozen=True)
class Latents:
    """Clips of the training set, each channel with mean 0 and variance 1."""

    values: Tensor
    """``[N, z, T, h, w]`` in half precision."""
    captions: list[str]
    mean: Tensor
    """Mean ``[z]`` of the latents as the VAE gives them."""
    std: Tensor
    """Standard deviation ``[z]`` of the same."""


@torch.no_grad()
def write_latents(
    vae: AutoencoderKLWan, clips: int, frames: int, work: Path, seed: int, device: torch.device
) -> None:
    """Draws and encodes clips of ``frames`` video frames until ``work/latents`` has enough."""
    shards = -(-clips // SHARD)
    for shard in tqdm(range(shards), desc="latents"):
        path = work / "latents" / f"{shard:04}.pt"
        if path.exists():
            continue
        draw = np.random.default_rng([seed, 1, shard])
        parts, captions = [], []
        for _ in range(SHARD // BATCH):
            batch = [random_clip(frames, draw) for _ in range(BATCH)]
            with torch.autocast(device.type, torch.bfloat16):
                means = chunks.encode(vae, render(batch).to(device)).chunk(2, dim=1)[0]
            parts.append(means.half().cpu())
            captions += [clip.scene.caption for clip in batch]
        checkpoints.save({"latents": torch.cat(parts), "captions": captions}, path)


def read_latents(work: Path) -> Latents:
    """All clips in ``work/latents``; the first file gives mean and standard deviation.

    Raises:
        LVSAError: where there are none.
    """
    paths = sorted((work / "latents").glob("*.pt"))
    if not paths:
        raise LVSAError(f"no latents in {work / 'latents'}: write_latents makes them")
    files = [torch.load(path, weights_only=True) for path in paths]
    sample = files[0]["latents"].float()
    mean = sample.mean(dim=(0, 2, 3, 4))
    std = sample.std(dim=(0, 2, 3, 4))
    shape = (-1, 1, 1, 1)
    values = torch.cat(
        [((f["latents"].float() - mean.view(shape)) / std.view(shape)).half() for f in files]
    )
    captions = [caption for f in files for caption in f["captions"]]
    logger.info("%d clips, latent mean %s, std %s", len(captions), mean.tolist(), std.tolist())
    return Latents(values, captions, mean, std)
