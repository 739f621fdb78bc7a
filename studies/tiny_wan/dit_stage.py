"""Second stage: text encoder and transformer learn rectified flow on the latents."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lvsa.studies.tiny_wan import checkpoints, processor, text
from lvsa.studies.tiny_wan.latents import Latents
from lvsa.studies.tiny_wan.model import (
    FLOW_SHIFT,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from lvsa.studies.tiny_wan.muon import optimizers
from lvsa.studies.tiny_wan.stage import Stage, StageSettings

logger = logging.getLogger(__name__)

TIMESTEPS = 1000
"""Timestep of pure noise, as the scheduler counts."""
ADAMW_PARTS = ("shared", "relative_attention_bias", "table", "patch_embedding", "proj_out", "time_")
"""Matrices that AdamW trains better than Muon: embeddings, and either end of the transformer."""


@dataclass(frozen=True, kw_only=True)
class DiTTraining(StageSettings):
    """Settings of the second stage."""

    steps: int = 7000
    batch: int = 10
    """Clips in a step; short clips come in batches of as many latent frames."""
    rate: float = 2e-3
    save_every: int = 100
    short_share: float = 0.15
    """Leading share on short clips, which teach what shapes and colors look like."""
    short_frames: int = 4
    """Latent frames of the short clips."""
    frames: int = 21
    """Latent frames of the others: the training horizon."""
    heads: int = 4
    """Attention heads."""
    head_dim: int = 40
    """Channels of a head."""
    layers: int = 6
    """Transformer blocks."""
    text_dropout: float = 0.12
    """Share of clips whose caption is left out, for guidance."""
    average: float = 0.998
    """Decay of the running mean of the weights."""
    sample_every: int = 1000
    """Steps between sample pictures."""


class Denoiser(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self, settings: DiTTraining, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.transformer = build_transformer(settings.heads, settings.head_dim, settings.layers)
        self.processor = processor.use_in(self.transformer)
        # Blocks that start as the identity, and a prediction that starts at zero, train faster.
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, noisy: Tensor, timestep: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Predicted velocity ``[B, z, T, h, w]`` of noisy latents, for texts ``[B, L]``."""
        rows, self.processor.bias = text.embed(self.text_encoder, ids, mask)
        return self.transformer(noisy, timestep, rows, return_dict=False)[0]


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels ``[count]``, distributed as the scheduler's own by its shift.

    Stratified, so that every batch has high and low levels.
    """
    uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    uniform = uniform[torch.randperm(count, generator=generator)]
    return FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)


def flow_loss(
    model: Denoiser, clean: Tensor, ids: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted velocity, noise minus data.

    Args:
        clean: latents ``[B, z, T, h, w]``.
        ids, mask: tokens of the captions ``[B, L]``.
        generator: draws noise levels and noise.
    """
    sigma = draw_sigmas(clean.shape[0], generator).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * clean + level * noise
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = model(noisy, sigma * TIMESTEPS, ids, mask)
    return (velocity.float() - (noise - clean)).square().mean()


class RunningMean:
    """Exponential mean of a model's weights.

    Its decay rises to the given one, so that early means do not consist of the first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after a step, counted from 0."""
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

    Args:
        settings: of the stage.
        data: latents and captions.
        work: folder of the checkpoint.
        seed: of weights, batches and noise.
        device: where to train.
        preview: called with the number of steps every ``sample_every`` steps and at the end, right
            after a checkpoint.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    captions = [*sorted(set(data.captions)), ""]
    ids, mask = text.tokenize(tokenizer, captions)
    position = {caption: i for i, caption in enumerate(captions)}
    which = torch.tensor([position[caption] for caption in data.captions])
    model = Denoiser(settings, len(tokenizer)).to(device)
    mean = RunningMean(model, settings.average)
    chosen = optimizers(model.named_parameters(), settings.rate, 0.02, ADAMW_PARTS)
    stage = Stage("dit", model, chosen, settings, work)
    if stage.restored:
        mean.values = {k: v.to(device) for k, v in stage.restored["mean"].items()}
    for step in stage.steps():
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        short = stage.share < settings.short_share
        frames = min(settings.short_frames if short else settings.frames, data.values.shape[2])
        count = max(1, settings.batch * settings.frames // frames if short else settings.batch)
        clips = torch.randint(len(which), (count,), generator=generator)
        # Every clip's first latent frame is one video frame, so clips are cut at the end only.
        clean = data.values[clips, :, :frames].float().to(device)
        prompts = which[clips].clone()
        prompts[torch.rand(count, generator=generator) < settings.text_dropout] = len(captions) - 1
        longest = int(mask[prompts].sum(dim=1).max())
        texts, there = (x[prompts, :longest].to(device) for x in (ids, mask))
        stage.descend(flow_loss(model, clean, texts, there, generator))
        mean.update(model, step)
        sampled = stage.due(settings.sample_every)
        if sampled or stage.due(settings.save_every):
            stage.save(mean=mean.values)
        if sampled:
            preview(stage.step)


def load_denoiser(settings: DiTTraining, vocabulary: int, work: Path) -> Denoiser:
    """The trained model, with the running mean of its weights, in evaluation mode.

    Raises:
        LVSAError: where there is no checkpoint of the stage.
    """
    model = Denoiser(settings, vocabulary)
    model.load_state_dict(checkpoints.require(work / "dit.pt")["mean"])
    return model.eval()
