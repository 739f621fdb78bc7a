"""Tiny complete pipelines: every real part, random weights, saved to disk and loaded from it."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel


def byte_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 symbols and no merges: it needs no data."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary.update({symbol: i + 3 for i, symbol in enumerate(alphabet)})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def wan_transformer(cls=WanTransformer3DModel, **overrides):
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "rope_max_seq_len": 256,
    }
    return cls(**{**config, **overrides})


def wan_pipeline(
    *, two_transformers: bool = False, per_token_timesteps: bool = False, unipc: bool = True
) -> WanPipeline:
    """A Wan T2V pipeline; ``per_token_timesteps`` makes it one of TI2V's kind."""
    torch.manual_seed(0)
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return WanPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=text.eval(),
        vae=wan_vae().eval(),
        transformer=wan_transformer().eval(),
        transformer_2=wan_transformer().eval() if two_transformers else None,
        boundary_ratio=0.5 if two_transformers else None,
        expand_timesteps=per_token_timesteps,
        scheduler=(
            UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )
            if unipc
            else FlowMatchEulerDiscreteScheduler(shift=3.0)
        ),
    )


def wan_latents(pipe, *, num_frames=45, height=32, width=48, steps=3, seed=0, guidance=3.0, **more):
    """Latents of a short video; by default 12 latent frames of 2 × 3 tokens."""
    pipe.set_progress_bar_config(disable=True)
    given = {
        "prompt": "a red circle",
        "negative_prompt": "dull",
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
        "max_sequence_length": 32,
    }
    return pipe(**{**given, **more}).frames


def saved(pipeline, folder: Path) -> Path:
    """Writes a pipeline in diffusers' directory format."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
