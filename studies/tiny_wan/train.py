"""Trains the tiny Wan pipeline from nothing and writes it in diffusers' format.

    python studies/tiny_wan/train.py --work /tmp/tiny-wan

Stages: VAE, latents, transformer with text encoder, export. Each goes on from its checkpoint in
the work folder, where sample pictures show how far it is; delete that folder to start afresh.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from diffusers import WanPipeline
from torch import Tensor

from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import LVSAError
from lvsa.launch.config import DeviceName
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.processes.runtime import pick_device
from lvsa.studies.tiny_wan import export, sheets
from lvsa.studies.tiny_wan.card import model_card
from lvsa.studies.tiny_wan.clips import SIZE
from lvsa.studies.tiny_wan.dit_stage import DiTTraining, train_dit
from lvsa.studies.tiny_wan.latents import read_latents, write_latents
from lvsa.studies.tiny_wan.vae_stage import VAETraining, load_vae, reconstruction, train_vae

logger = logging.getLogger("lvsa.studies.tiny_wan.train")

SAMPLES = (
    "a red circle bounces",
    "a blue square drifts left",
    "a green triangle circles",
    "a yellow ring drifts up",
    "a purple square bounces",
    "a cyan circle and a red square meet",
)


@dataclass(frozen=True)
class Training:
    """Train the tiny Wan pipeline from nothing."""

    work: Path
    """Folder for checkpoints, latents and sample pictures; takes a few hundred MB."""
    out: Path = Path("assets/tiny-wan")
    """Folder that the pipeline is written to."""
    seed: int = 0
    """Seed of weights, clips and noise."""
    device: DeviceName = "auto"
    """Kind of device. auto: the accelerator that PyTorch sees, else the CPU."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""
    clips: int = 3000
    """Clips that the transformer trains on."""
    vae: VAETraining = field(default_factory=VAETraining)
    """First stage."""
    dit: DiTTraining = field(default_factory=DiTTraining)
    """Second stage."""
    measure_clips: int = 16
    """Clips of full length that the VAE's error is measured on."""
    sample_steps: int = TINY_WAN.defaults.steps
    """Denoising steps of the sample pictures."""

    def check(self) -> None:
        """Checks the settings.

        Raises:
            LVSAError: for one that cannot work.
        """
        if self.vae.frames < 1 or self.vae.frames % 4 != 1:
            raise LVSAError(
                f"--vae.frames is {self.vae.frames}; it must be 1 more than a multiple of 4, "
                f"nearest: {max(1, 4 * round((self.vae.frames - 1) / 4) + 1)}"
            )
        for name, value in (
            ("--clips", self.clips),
            ("--vae.steps", self.vae.steps),
            ("--vae.batch", self.vae.batch),
            ("--dit.steps", self.dit.steps),
            ("--dit.batch", self.dit.batch),
            ("--dit.frames", self.dit.frames),
            ("--vae.save-every", self.vae.save_every),
            ("--dit.save-every", self.dit.save_every),
            ("--dit.sample-every", self.dit.sample_every),
        ):
            if value < 1:
                raise LVSAError(f"{name} is {value}; it must be at least 1")


def train(settings: Training) -> Path:
    """Runs all stages.

    Returns:
        Folder of the finished pipeline.
    """
    settings.check()
    device = pick_device(settings.device, 0)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    work, seed = settings.work, settings.seed
    frames = 4 * settings.dit.frames - 3
    train_vae(settings.vae, work, seed, device)
    vae = load_vae(work, device)
    write_latents(vae, settings.clips, frames, work, seed, device)
    mse, pictures = reconstruction(vae, settings.measure_clips, frames, device)
    logger.info("VAE: mse %.5f over %d clips of %d frames", mse, settings.measure_clips, frames)
    sheets.save_sheet(pictures[:12], work / "vae-full.png")
    data = read_latents(work)

    def preview(step: int) -> None:
        found = samples(export.assemble(settings.dit, data, work), settings, frames)
        sheets.save_sheet(found, work / f"samples-{step:05}.png")

    train_dit(settings.dit, data, work, seed, device, preview)
    pipe = export.assemble(settings.dit, data, work)
    weights = sum(
        parameter.numel()
        for part in (pipe.vae, pipe.text_encoder, pipe.transformer)
        for parameter in part.parameters()
    )
    machine = f"{os.cpu_count()} CPU cores" if device.type == "cpu" else "one accelerator"
    card = model_card(
        work, weights / 1e6, mse, len(data.captions), seed, machine, settings.vae, settings.dit
    )
    export.export(pipe, settings.out, card)
    return settings.out


def samples(pipe: WanPipeline, settings: Training, frames: int) -> Tensor:
    """Videos of `SAMPLES` ``[B, 3, F, 64, 64]``, −1 to 1."""
    pipe.set_progress_bar_config(disable=True)
    video = pipe(
        list(SAMPLES),
        height=SIZE,
        width=SIZE,
        num_frames=frames,
        num_inference_steps=settings.sample_steps,
        guidance_scale=TINY_WAN.defaults.guidance,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="pt",
    ).frames
    return torch.as_tensor(video).transpose(1, 2) * 2 - 1


def main() -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: train(tyro.cli(Training, description=__doc__))))


if __name__ == "__main__":
    main()
