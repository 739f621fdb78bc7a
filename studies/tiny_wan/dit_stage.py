"""Second stage: text encoder and transformer learn rectified flow on the latents."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lvsa.studies.tiny_wan import checkpoints, processor, text
from lvsa.studies.tiny_wan.latents import Latents
from lvsa.studies.tiny_wan.model import (
    FLOW_SHIFT,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from lvsa.studies.tiny_wan.muon import optimisers
from lvsa.studies.tiny_wan.progress import Progress

logger = logging.getLogger(__name__)

# Steps of the scheduler, which counts noise from 0 to 1000.
TIMESTEPS = 1000
# Embeddings, and layers at either end of the transformer, train better by AdamW.
PLAIN = ("shared", "relative_attention_bias", "table", "patch_embedding", "proj_out", "time_")


@dataclass(frozen=True)
class DiTTraining:
    """Settings of the second stage."""

    steps: int = 7000
    """Optimiser steps."""
    minutes: float | None = None
    """Time after which the stage ends although steps are left."""
    short_share: float = 0.15
    """Leading share on short clips, which teach what shapes and colours look like."""
    short_frames: int = 4
    """Latent frames of the short clips."""
    frames: int = 21
    """Latent frames of the others: the training horizon."""
    batch: int = 10
    """Clips in a step; short clips come in batches of as many latent frames."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 40
    """Channels of a head."""
    layers: int = 6
    """Transformer blocks."""
    rate: float = 2e-3
    """Highest learning rate."""
    text_dropout: float = 0.12
    """Share of clips whose caption is left out, for guidance."""
    average: float = 0.998
    """Decay of the running mean of the weights."""
    save_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between sample pictures."""


class Denoiser(nn.Module):
    """Text encoder and transformer, which train together."""

    def __init__(self, settings: DiTTraining, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.transformer = build_transformer(settings.heads, settings.head_dim, settings.layers)
        self.processor = processor.use_in(self.transformer)
        # Blocks that start as the identity, and a prediction that starts at zero, train faster.
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        rows, self.processor.bias = text.embed(self.text_encoder, ids, mask)
        return self.transformer(noisy, timestep, rows, return_dict=False)[0]


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels ``[count]``: evenly spread over the scheduler's own, by its shift.

    Stratified, so that no batch consists of easy levels only.
    """
    uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    uniform = uniform[torch.randperm(count, generator=generator)]
    return FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)


def flow_loss(
    model: Denoiser, clean: Tensor, ids: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted velocity, noise minus data."""
    sigma = draw_sigmas(clean.shape[0], generator).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * clean + level * noise
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = model(noisy, sigma * TIMESTEPS, ids, mask)
    return (velocity.float() - (noise - clean)).square().mean()


class RunningMean:
    """Exponential mean of a model's weights; short at first, so that early saves are of use."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.values[name].lerp_(value, 1 - decay)


def train_dit(
    settings: DiTTraining,
    data: Latents,
    work: Path,
    seed: int,
    device: torch.device,
    preview: Callable[[int], None],
) -> None:
    """Trains or goes on training; leaves ``dit.pt`` in ``work``.

    ``preview`` is called with the number of steps every ``sample_every`` steps and at the end,
    right after a checkpoint.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    captions = [*sorted(set(data.captions)), ""]
    ids, mask = text.tokenize(tokenizer, captions)
    position = {caption: i for i, caption in enumerate(captions)}
    which = torch.tensor([position[caption] for caption in data.captions])
    model = Denoiser(settings, len(tokenizer)).to(device)
    mean = RunningMean(model, settings.average)
    chosen = optimisers(model.named_parameters(), settings.rate, 0.02, PLAIN)
    first, seconds = 0, 0.0
    if state := checkpoints.load(work / "dit.pt"):
        model.load_state_dict(state["model"])
        mean.values = {k: v.to(device) for k, v in state["mean"].items()}
        for optimiser, saved in zip(chosen, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    stage = Progress(settings.steps, settings.minutes, seconds)
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="dit")
    running = 0.0
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        short = stage.share(step) < settings.short_share
        frames = min(settings.short_frames if short else settings.frames, data.values.shape[2])
        count = max(1, settings.batch * settings.frames // frames if short else settings.batch)
        clips = torch.randint(len(which), (count,), generator=generator)
        # Every clip's first latent frame is one video frame, so clips are cut at the end only.
        clean = data.values[clips, :, :frames].float().to(device)
        prompts = which[clips].clone()
        prompts[torch.rand(count, generator=generator) < settings.text_dropout] = len(captions) - 1
        longest = int(mask[prompts].sum(dim=1).max())
        loss = flow_loss(
            model,
            clean,
            ids[prompts, :longest].to(device),
            mask[prompts, :longest].to(device),
            generator,
        )
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stage.set_rate(chosen, settings.rate, step)
        for optimiser in chosen:
            optimiser.step()
        mean.update(model, step)
        value = float(loss.detach())
        running = value if step == first else 0.98 * running + 0.02 * value
        if step % 10 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
        last = step + 1 == settings.steps or stage.share(step + 1) == 1.0
        sampled = last or (step + 1) % settings.sample_every == 0
        if sampled or (step + 1) % settings.save_every == 0:
            checkpoints.save(
                {
                    "model": model.state_dict(),
                    "mean": mean.values,
                    "optimisers": [optimiser.state_dict() for optimiser in chosen],
                    "step": step + 1,
                    "seconds": stage.seconds,
                },
                work / "dit.pt",
            )
            logger.info("dit step %d: %d frames, loss %.4f", step + 1, frames, running)
        if sampled:
            preview(step + 1)
        if last:
            break


def load_denoiser(settings: DiTTraining, vocabulary: int, work: Path) -> Denoiser:
    """The trained model, with the running mean of its weights."""
    state = checkpoints.load(work / "dit.pt")
    if state is None:
        raise FileNotFoundError(f"no transformer in {work}; the second stage has not run")
    model = Denoiser(settings, vocabulary)
    model.load_state_dict(state["mean"])
    return model.eval()
