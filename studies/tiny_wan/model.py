"""The parts of the tiny Wan, untrained, and the pipeline that they make."""

from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from lvsa.studies.tiny_wan.captions import meeting_scenes, single_scenes

Z_DIM = 8
"""Channels of the latents."""
TEXT_DIM = 64
"""Channels of the text encoder."""
FLOW_SHIFT = 5.0
"""Shift of noise levels towards noise, as Wan 2.1 uses at 720p; in training as in sampling."""


def build_vae(base_dim: int = 16) -> AutoencoderKLWan:
    """A Wan VAE of three levels on 2×2 patches: 8× in space, 4× in time, like Wan 2.1's."""
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
    )
    # Latents start almost free of noise. With the default's variance of about 1 the noise drowns
    # what the encoder says before the decoder has learned to listen, and training stays there.
    with torch.no_grad():
        vae.quant_conv.weight[Z_DIM:].zero_()
        vae.quant_conv.bias[Z_DIM:].fill_(-5.0)
    return vae


def build_tokenizer(captions: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges come from captions, by default all there can be.

    Each of their words is one token; any other text is spelled in bytes.
    """
    if captions is None:
        captions = [scene.caption for scene in single_scenes() + meeting_scenes()]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    # Like T5's, every text ends in </s>; so the empty prompt is one token, not none.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build_text_encoder(vocabulary: int, layers: int = 2) -> UMT5EncoderModel:
    """A UMT5 encoder of few layers.

    Args:
        vocabulary: size of the tokenizer's.
        layers: number of blocks.
    """
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


def build_transformer(heads: int = 4, head_dim: int = 40, layers: int = 6) -> WanTransformer3DModel:
    """A Wan transformer on patches of 1 × 2 × 2 latents."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=3 * heads * head_dim,
        num_layers=layers,
        cross_attn_norm=True,
        rope_max_seq_len=1024,
    )


def build_pipeline(
    vae: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
    text_encoder: UMT5EncoderModel,
    transformer: WanTransformer3DModel,
) -> WanPipeline:
    """The pipeline of the four parts with a flow-matching scheduler, in evaluation mode."""
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
    )
