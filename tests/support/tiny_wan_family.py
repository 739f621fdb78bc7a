"""Tiny complete pipelines of every kind of Wan and SkyReels-V2, and inputs for them."""

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.support.tiny import byte_tokenizer, wan_transformer, wan_vae

IMAGE_TOKENS = 5  # 2 × 2 patches and the class token
IMAGE_WIDTH = 8
# Noise, mask and image latents side by side.
CONDITIONED = {"in_channels": 4 + 4 + 4}
IMAGE = {**CONDITIONED, "image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 24}
FIRST_AND_LAST = {**IMAGE, "pos_embed_seq_len": 2 * IMAGE_TOKENS}


def transformer(cls=WanTransformer3DModel, **overrides):
    model = wan_transformer(cls, **overrides).eval()
    image = model.condition_embedder.image_embedder
    if image is not None and image.pos_embed is not None:
        # A new model has zeros there, which would hide a wrong order of the images.
        torch.nn.init.normal_(image.pos_embed)
    return model


def vace_transformer():
    return transformer(
        WanVACETransformer3DModel, vace_layers=[0, 1], vace_in_channels=4 + 4 + 64, num_layers=3
    )


def ti2v_vae():
    """Patches before the VAE double its spatial factor, as in TI2V-5B."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
    ).eval()


def common(vae=None, unipc=True):
    torch.manual_seed(0)
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return {
        "tokenizer": byte_tokenizer(),
        "text_encoder": text.eval(),
        "vae": (vae or wan_vae)().eval(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        if unipc
        else FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def image_parts(encoder=CLIPVisionModel):
    size = {"height": 8, "width": 8}
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return {
        "image_encoder": encoder(config).eval(),
        "image_processor": CLIPImageProcessor(size=size, crop_size=size),
    }


def wan_i2v():
    return WanImageToVideoPipeline(**common(), **image_parts(), transformer=transformer(**IMAGE))


def wan_flf():
    parts = {**common(unipc=False), **image_parts()}
    return WanImageToVideoPipeline(**parts, transformer=transformer(**FIRST_AND_LAST))


def wan_22_i2v():
    return WanImageToVideoPipeline(
        **common(),
        transformer=transformer(**CONDITIONED),
        transformer_2=transformer(**CONDITIONED),
        boundary_ratio=0.8,
    )


def wan_ti2v():
    return WanImageToVideoPipeline(
        **common(ti2v_vae), transformer=transformer(), expand_timesteps=True
    )


def wan_vace():
    return WanVACEPipeline(**common(), transformer=vace_transformer())


def wan_v2v():
    return WanVideoToVideoPipeline(**common(), transformer=transformer())


def skyreels():
    return SkyReelsV2Pipeline(**common(), transformer=transformer(SkyReelsV2Transformer3DModel))


def skyreels_i2v():
    return SkyReelsV2ImageToVideoPipeline(
        **common(),
        **image_parts(CLIPVisionModelWithProjection),
        transformer=transformer(SkyReelsV2Transformer3DModel, **IMAGE),
    )


KINDS = {
    "wan-2.1-i2v": wan_i2v,
    "wan-2.1-flf": wan_flf,
    "wan-2.2-i2v": wan_22_i2v,
    "wan-2.2-ti2v": wan_ti2v,
    "wan-vace": wan_vace,
    "wan-v2v": wan_v2v,
    "skyreels": skyreels,
    "skyreels-i2v": skyreels_i2v,
}


def picture(height, width, shift=0):
    """A picture with some structure, different for every shift."""
    pixels = torch.arange(height * width * 3).reshape(height, width, 3)
    return Image.fromarray(((pixels * 7 + 40 * shift) % 256).to(torch.uint8).numpy())


def inputs(kind, num_frames, height, width):
    """Conditioning that a kind of pipeline takes besides the prompt, and its length."""
    length = {} if kind == "wan-v2v" else {"num_frames": num_frames}
    video = [picture(height, width, i) for i in range(num_frames)]
    if kind == "wan-2.1-flf":
        return {**length, "image": video[0], "last_image": video[3]}
    if kind == "wan-v2v":
        return {**length, "video": video, "strength": 0.8}
    if kind == "wan-vace":
        black, white = (Image.new("L", (width, height), value) for value in (0, 255))
        mask = [black, *[white] * (num_frames - 2), black]
        return {**length, "video": video, "mask": mask}
    if kind == "skyreels":
        return length
    return {**length, "image": video[0]}
