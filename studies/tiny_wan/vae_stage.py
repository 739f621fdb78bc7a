"""First stage: the VAE learns to give clips back."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from tqdm import tqdm

from lvsa.studies.tiny_wan import checkpoints, chunks, sheets
from lvsa.studies.tiny_wan.clips import random_clip, render
from lvsa.studies.tiny_wan.model import build_vae
from lvsa.studies.tiny_wan.muon import optimisers
from lvsa.studies.tiny_wan.progress import Progress

logger = logging.getLogger(__name__)

HELD_OUT_SEED = 10**6


@dataclass(frozen=True)
class VAETraining:
    """Settings of the first stage."""

    steps: int = 2400
    """Optimiser steps."""
    minutes: float | None = None
    """Time after which the stage ends although steps are left."""
    batch: int = 8
    """Clips in a step; single frames come in batches 8 times as large."""
    frames: int = 17
    """Video frames of a clip; 13 is the least that shows the decoder its steady state."""
    base_dim: int = 16
    """Channels of the VAE's first level."""
    rate: float = 4e-3
    """Highest learning rate."""
    kl_weight: float = 3e-6
    """Weight of the divergence from the normal distribution, in the loss summed over channels."""
    first_weight: float = 0.01
    """Weight of the difference between the first latent frame and the second where nothing moves,
    as a share of the latents' variance."""
    save_every: int = 50
    """Steps between checkpoints."""

    def clips(self, share: float) -> tuple[int, int]:
        """Clips and their frames in a step after a share of the stage.

        Single frames first, which show the most shapes for the time, and long clips last.
        """
        if share < 0.2:
            return 8 * self.batch, 1
        if share < 0.45:
            return 2 * self.batch, min(5, self.frames)
        if share < 0.7:
            return self.batch, self.frames
        return -(-self.batch // 3), 3 * self.frames - 2


def with_cuts(video: Tensor, draw: np.random.Generator) -> Tensor:
    """Clips ``[B, 3, F, H, W]`` that change to another's picture, once in 16 frames or so.

    The causal convolutions remember some twenty latent frames. Where nothing is ever cut, the
    first latent frame alone describes the background, and longer videos lose it.
    """
    cut = video.clone()
    for start in range(1, video.shape[2], 4):
        if draw.random() < 0.25:
            order = torch.from_numpy(draw.permutation(len(video)))
            cut[:, :, start:] = video[order][:, :, start:]
    return cut


def with_stills(video: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clips ``[B, 3, F, H, W]``, a quarter of which stand still for their first five frames.

    Also tells which ``[B]``. Their first latent frame, which is of one video frame, shows what the
    second shows, which is of four; the loss asks that it says so in the same way. Otherwise the
    first latent frame may have a language of its own, in which errors that would be small in the
    others' paint other colours.
    """
    still = torch.from_numpy(draw.random(len(video)) < 0.25)
    if video.shape[2] < 5:
        return video, torch.zeros_like(still)
    video = video.clone()
    video[still, :, 1:5] = video[still, :, :1]
    return video, still


def loss_of(
    vae: AutoencoderKLWan, video: Tensor, still: Tensor, settings: VAETraining, autocast: bool
) -> tuple[Tensor, Tensor]:
    """The training loss of clips ``[B, 3, F, H, W]``, and the mean squared error alone.

    ``still`` ``[B]`` tells which clips do not move in their first five frames.
    """
    with torch.autocast(video.device.type, torch.bfloat16, enabled=autocast):
        mean, logvar = chunks.encode(vae, video).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        error = chunks.decode(vae, latents).float() - video
    mse = error.square().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
    loss = mse + 0.2 * error.abs().mean() + settings.kl_weight * kl
    if still.any():
        apart = (mean[still, :, 0] - mean[still, :, 1]).square().mean()
        loss = loss + settings.first_weight * apart / mean.detach().var()
    return loss, mse.detach()


def train_vae(settings: VAETraining, work: Path, seed: int, device: torch.device) -> None:
    """Trains or goes on training; leaves ``vae.pt`` in ``work``."""
    torch.manual_seed(seed)
    vae = chunks.channels_last(build_vae(settings.base_dim).to(device))
    chosen = optimisers(vae.named_parameters(), settings.rate, 0.0, ())
    first, seconds = 0, 0.0
    if state := checkpoints.load(work / "vae.pt"):
        vae.load_state_dict(state["vae"])
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    stage = Progress(settings.steps, settings.minutes, seconds)
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="vae")
    running = 0.0
    for step in bar:
        # Drawn by step number, so that a resumed run sees clips that it has not seen.
        draw = np.random.default_rng([seed, step])
        torch.manual_seed(seed * 7919 + step)
        count, frames = settings.clips(stage.share(step))
        video = render([random_clip(frames, draw) for _ in range(count)])
        video, still = with_stills(with_cuts(video, draw), draw)
        loss, mse = loss_of(vae, video.to(device), still.to(device), settings, autocast=True)
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        stage.set_rate(chosen, settings.rate, step)
        for optimiser in chosen:
            optimiser.step()
        running = float(mse) if step == first else 0.95 * running + 0.05 * float(mse)
        if step % 10 == 0:
            bar.set_postfix(mse=f"{running:.5f}")
        last = step + 1 == settings.steps or stage.share(step + 1) == 1.0
        if last or (step + 1) % settings.save_every == 0:
            checkpoints.save(
                {
                    "vae": vae.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in chosen],
                    "step": step + 1,
                    "seconds": stage.seconds,
                    "base_dim": settings.base_dim,
                },
                work / "vae.pt",
            )
            logger.info("vae step %d: %d frames, mse %.5f", step + 1, frames, running)
        if last or (step + 1) % (4 * settings.save_every) == 0:
            held_out, pictures = reconstruction(vae, 2, settings.frames, device)
            logger.info("vae step %d: held-out mse %.5f", step + 1, held_out)
            sheets.save_sheet(pictures, work / "vae.png")
        if last:
            break


def load_vae(work: Path, device: torch.device) -> AutoencoderKLWan:
    """The trained VAE, in evaluation."""
    state = checkpoints.load(work / "vae.pt")
    if state is None:
        raise FileNotFoundError(f"no VAE in {work}; the first stage has not run")
    vae = build_vae(state["base_dim"])
    vae.load_state_dict(state["vae"])
    return chunks.channels_last(vae.to(device)).eval()


@torch.no_grad()
def reconstruction(
    vae: AutoencoderKLWan, count: int, frames: int, device: torch.device
) -> tuple[float, Tensor]:
    """Mean squared error (range −1 to 1) over clips that training never drew.

    Runs the model's own encode and decode. Also gives clips above their reconstructions,
    ``[2·count, 3, F, 64, 64]``.
    """
    draw = np.random.default_rng(HELD_OUT_SEED)
    errors, pictures = [], []
    for _ in range(count):
        video = render([random_clip(frames, draw)]).to(device)
        back = vae.decode(vae.encode(video).latent_dist.mode()).sample
        errors.append(float((back - video).square().mean()))
        pictures += [video.cpu(), back.cpu()]
    return sum(errors) / count, torch.cat(pictures)
