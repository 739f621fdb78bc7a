"""Tiny complete HunyuanVideo 1.5 pipelines: every real part, random weights, no data needed."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

IMAGE_TOKENS = 9  # 3 × 3 patches of the tiny SigLIP
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte-level, 256 symbols and no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {symbol: i for i, symbol in enumerate([*special, *alphabet])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def hunyuan_vae() -> AutoencoderKLHunyuanVideo15:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    )


def hunyuan_transformer(**overrides) -> HunyuanVideo15Transformer3DModel:
    config = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "text_embed_2_dim": 16,
        "image_embed_dim": 16,
        "rope_axes_dim": (4, 4, 4),
        "target_size": 48,
    }
    return HunyuanVideo15Transformer3DModel(**{**config, **overrides})


def hunyuan_pipeline(
    *, image: bool = False
) -> HunyuanVideo15Pipeline | HunyuanVideo15ImageToVideoPipeline:
    """A T2V pipeline, or an I2V one."""
    torch.manual_seed(0)
    text = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=259,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=None,
            eos_token_id=None,
            rope_scaling={"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
        )
    )
    glyphs = T5EncoderModel(
        T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    parts = {
        "tokenizer": qwen_tokenizer(),
        "text_encoder": text.eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "text_encoder_2": glyphs.eval(),
        "vae": hunyuan_vae().eval(),
        "transformer": hunyuan_transformer(task_type="i2v" if image else "t2v").eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }
    if not image:
        return shortened(HunyuanVideo15Pipeline(**parts))
    vision = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
        )
    )
    return shortened(
        HunyuanVideo15ImageToVideoPipeline(
            **parts,
            image_encoder=vision.eval(),
            feature_extractor=SiglipImageProcessor(size={"height": 12, "width": 12}),
        )
    )


def shortened(pipe):
    """Texts of a few dozen tokens: these lengths stand in the pipelines' code, in no config."""
    pipe.system_message = "Describe the video."
    pipe.prompt_template_encode_start_idx = 8
    pipe.tokenizer_max_length = 56
    pipe.tokenizer_2_max_length = 24
    pipe.vision_num_semantic_tokens = IMAGE_TOKENS
    return pipe


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """A gradient with a mark in it."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((250, 30, 30), (width // 4, height // 4, width // 2, height // 2))
    return image
