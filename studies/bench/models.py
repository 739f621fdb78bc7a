"""Transformers of published models by their sizes: what benchmarks without weights are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lvsa.errors import LVSAError
from lvsa.shards import FrameGrid


@dataclass(frozen=True)
class ModelSize:
    """A published transformer, and the videos that it is used for.

    Args:
        adapter: name of the model family.
        transformer: class of diffusers.
        config: where it differs from that class's defaults.
        heads, head_dim, layers: of its attention over video.
        rows, columns: of tokens in a latent frame, at the size it is best known for.
        temporal_factor: video frames per latent frame.
        horizon: latent frames that it was trained on.
        text: text tokens that take part in the attention over video.
    """

    adapter: str
    transformer: str
    heads: int
    head_dim: int
    layers: int
    rows: int
    columns: int
    horizon: int
    config: Mapping[str, Any] = field(default_factory=dict)
    temporal_factor: int = 4
    text: int = 0

    def grid(self, latent_frames: int) -> FrameGrid:
        """The token grid of a video."""
        return FrameGrid(
            latent_frames, self.rows, self.columns, temporal_factor=self.temporal_factor
        )

    def build(
        self, layers: int, dtype: torch.dtype, device: torch.device | str = "meta"
    ) -> nn.Module:
        """The transformer with random weights, or none on the meta device.

        Args:
            layers: how many blocks it keeps.
            dtype: of the weights, but for those that the model keeps in float32.
            device: where it is built.
        """
        import diffusers

        with torch.device(device):
            cls = getattr(diffusers, self.transformer)
            transformer: nn.Module = cls(**{**self.config, "num_layers": layers}).eval()
        keeps = getattr(transformer, "_keep_in_fp32_modules", None) or ()
        for name, parameter in transformer.named_parameters():
            if not {*name.split(".")} & {*keeps}:
                parameter.data = parameter.data.to(dtype)
        return transformer.requires_grad_(False)


def _wan(heads: int, layers: int, **config: Any) -> ModelSize:
    return ModelSize(
        "wan",
        "WanTransformer3DModel",
        heads=heads,
        head_dim=128,
        layers=layers,
        rows=30,
        columns=52,
        horizon=21,
        config={"num_attention_heads": heads, **config},
    )


# Rows and columns: 480 × 832 pixels for Wan, 480 × 848 for HunyuanVideo, 480 × 720 for CogVideoX.
MODELS = {
    "wan-1.3b": _wan(heads=12, layers=30, ffn_dim=8960),
    "wan-14b": _wan(heads=40, layers=40),
    "hunyuan15": ModelSize(
        "hunyuan15",
        "HunyuanVideo15Transformer3DModel",
        heads=16,
        head_dim=128,
        layers=54,
        rows=30,
        columns=53,
        horizon=33,
        text=1000,
    ),
    "cogvideox-5b": ModelSize(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        heads=48,
        head_dim=64,
        layers=42,
        rows=30,
        columns=45,
        horizon=13,
        text=226,
        config={"num_attention_heads": 48, "use_rotary_positional_embeddings": True},
    ),
}


def model_named(name: str) -> ModelSize:
    """A model by name; an unknown name lists the known ones."""
    if name not in MODELS:
        raise LVSAError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]
