"""First stage: the VAE learns to reconstruct clips."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from lvsa.studies.tiny_wan import checkpoints, chunks, sheets
from lvsa.studies.tiny_wan.clips import random_clip, render
from lvsa.studies.tiny_wan.model import build_vae
from lvsa.studies.tiny_wan.muon import optimizers
from lvsa.studies.tiny_wan.stage import Stage, StageSettings

logger = logging.getLogger(__name__)

HELD_OUT_SEED = 10**6


@dataclass(frozen=True, kw_only=True)
class VAETraining(StageSettings):
    """Settings of the first stage."""

    steps: int = 2400
    batch: int = 8
    """Clips in a step; single frames come in batches 8 times as large."""
    rate: float = 4e-3
    save_every: int = 50
    frames: int = 17
    """Video frames of a clip; 13 is the least that shows the decoder its steady state."""
    base_dim: int = 16
    """Channels of the VAE's first level."""
    kl_weight: float = 3e-6
    """Weight of the divergence from the normal distribution, in the loss summed over channels."""
    first_weight: float = 0.01
    """Weight of the difference between the first latent frame and the second where nothing moves,
    as a share of the latents' variance."""

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
    """Clips ``[B, 3, F, H, W]`` that cut to another clip, once in 16 frames on average.

    The causal convolutions reach back some twenty latent frames. Without cuts, the first latent
    frame alone comes to encode the background, and longer videos lose it.
    """
    cut = video.clone()
    for start in range(1, video.shape[2], 4):
        if draw.random() < 0.25:
            order = torch.from_numpy(draw.permutation(len(video)))
            cut[:, :, start:] = video[order][:, :, start:]
    return cut


def with_stills(video: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clips ``[B, 3, F, H, W]``, a quarter of which stand still for their first five frames.

    Their first latent frame (of one video frame) shows what their second (of four) shows, and the
    loss asks that both be encoded alike. Otherwise the encoder may represent the first latent frame
    in a way of its own, in which an error that is small elsewhere changes the color.

    Returns:
        The clips, and ``[B]`` which of them stand still.
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
    """Training loss of clips, and their mean squared error alone.

    Args:
        video: ``[B, 3, F, H, W]``, −1 to 1.
        still: ``[B]``, true for clips that do not move in their first five frames.
        autocast: whether to compute in bfloat16.
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
    chosen = optimizers(vae.named_parameters(), settings.rate, 0.0, ())
    stage = Stage("vae", vae, chosen, settings, work)
    for step in stage.steps():
        # Drawn by step number, so that a resumed run sees clips that it has not seen.
        draw = np.random.default_rng([seed, step])
        torch.manual_seed(seed * 7919 + step)
        count, frames = settings.clips(stage.share)
        video = render([random_clip(frames, draw) for _ in range(count)])
        video, still = with_stills(with_cuts(video, draw), draw)
        loss, mse = loss_of(vae, video.to(device), still.to(device), settings, autocast=True)
        stage.descend(loss, shown=mse)
        if stage.due(settings.save_every):
            stage.save(base_dim=settings.base_dim)
        if stage.due(4 * settings.save_every):
            held_out, pictures = reconstruction(vae, 2, settings.frames, device)
            logger.info("vae step %d: held-out mse %.5f", stage.step, held_out)
            sheets.save_sheet(pictures, work / "vae.png")


def load_vae(work: Path, device: torch.device) -> AutoencoderKLWan:
    """The trained VAE, in evaluation mode.

    Raises:
        LVSAError: where there is no checkpoint of the stage.
    """
    state = checkpoints.require(work / "vae.pt")
    vae = build_vae(state["base_dim"])
    vae.load_state_dict(state["model"])
    return chunks.channels_last(vae.to(device)).eval()


@torch.no_grad()
def reconstruction(
    vae: AutoencoderKLWan, count: int, frames: int, device: torch.device
) -> tuple[float, Tensor]:
    """Error of the model's own encode and decode on clips that training never drew.

    Returns:
        Mean squared error (pixels in −1 to 1), and each clip followed by its reconstruction,
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
