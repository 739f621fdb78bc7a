"""Tiny complete CogVideoX pipelines: every real part, random weights, of each published kind."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
)
from PIL import Image
from transformers import T5Config, T5EncoderModel

import lvsa
from tests.support.tiny import byte_tokenizer

TEXT_TOKENS = 16
LATENT_CHANNELS = 4
# In latent pixels: 32 × 96 pixels, 2 × 6 tokens. Only 5B-I2V is bound to it.
SAMPLE = {"sample_height": 4, "sample_width": 12, "sample_frames": 97}
ROTARY = {"use_rotary_positional_embeddings": True}
DEEP = {**ROTARY, "patch_size_t": 2, "patch_bias": False}

# Pipeline class, scheduler class, and what the transformer's config says beyond the common.
KINDS = {
    "2b": (CogVideoXPipeline, CogVideoXDDIMScheduler, {}),
    "5b": (CogVideoXPipeline, CogVideoXDPMScheduler, ROTARY),
    "5b-i2v": (
        CogVideoXImageToVideoPipeline,
        CogVideoXDDIMScheduler,
        {**ROTARY, "use_learned_positional_embeddings": True, "in_channels": 2 * LATENT_CHANNELS},
    ),
    "5b-v2v": (CogVideoXVideoToVideoPipeline, CogVideoXDPMScheduler, ROTARY),
    "1.5": (CogVideoXPipeline, CogVideoXDPMScheduler, DEEP),
    "1.5-i2v": (
        CogVideoXImageToVideoPipeline,
        CogVideoXDDIMScheduler,
        {**DEEP, "ofs_embed_dim": 16, "in_channels": 2 * LATENT_CHANNELS},
    ),
    "1.5-v2v": (CogVideoXVideoToVideoPipeline, CogVideoXDDIMScheduler, DEEP),
}


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=1.0,
    )


def cogvideox_transformer(**overrides) -> CogVideoXTransformer3DModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "time_embed_dim": 16,
        "text_embed_dim": 16,
        "num_layers": 2,
        "max_text_seq_length": TEXT_TOKENS,
        **SAMPLE,
    }
    model = CogVideoXTransformer3DModel(**{**config, **overrides})
    if model.config.use_learned_positional_embeddings:
        # Learned, not the sinusoidal ones that they start from.
        model.patch_embed.pos_embedding.normal_()
    return model


def cogvideox_pipeline(kind: str, **overrides):
    """A pipeline of one of `KINDS`; ``overrides`` go to the transformer's config."""
    pipeline_class, scheduler_class, config = KINDS[kind]
    torch.manual_seed(0)
    text = T5EncoderModel(
        T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return pipeline_class(
        tokenizer=byte_tokenizer(),
        text_encoder=text.eval(),
        vae=cogvideox_vae().eval(),
        transformer=cogvideox_transformer(**config, **overrides).eval(),
        scheduler=scheduler_class(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=3.0,
        ),
    )


def load_cogvideox(kind: str, folder: str | Path):
    """Reads a saved pipeline, as a user would."""
    pipe = KINDS[kind][0].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SIZE = {"height": 32, "width": 96}  # 2 × 6 tokens a frame
# Twice the horizon. 25 frames of 12 tokens among 2, 3 and 4 ranks: every cut falls in a frame, as
# it does for 21 frames (161 video frames of 1.5) among 2 and 4 ranks.
FIRST, SECOND, SECOND_V2V = 97, 161, 160
LONG = {kind: SECOND if kind.startswith("1.5") else FIRST for kind in KINDS}
LONG["1.5-v2v"] = SECOND_V2V


def generate(pipe, kind, num_frames, *, seed=0, guidance=3.0, steps=3, size=None, **others):
    """Latents of a video of this many frames."""
    pipe.set_progress_bar_config(disable=True)
    size = size or SIZE
    given = {
        "prompt": "a red circle",
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
        "max_sequence_length": TEXT_TOKENS,
        **size,
        **source(kind, num_frames, **size),
        **others,
    }
    return pipe(**given).frames


def enabled(pipe, num_frames, *, size=None, settings=None, rotate=True, **others):
    """LVSA with the family's defaults, keyframes rotating."""
    if settings is None:
        settings = lvsa.LVSASettings(rotate_keyframes=rotate)
    return lvsa.enable(pipe, num_frames=num_frames, **(size or SIZE), settings=settings, **others)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def source(kind: str, num_frames: int, height: int, width: int) -> dict:
    """What a kind's call takes to start from: a length, an image and a length, or a video."""
    if kind.endswith("v2v"):
        return {"video": [picture(height, width, seed) for seed in range(num_frames)]}
    image = {"image": picture(height, width)} if kind.endswith("i2v") else {}
    return {"num_frames": num_frames, **image}
