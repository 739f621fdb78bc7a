"""Wan 2.1 and 2.2, and the small model of the same parts that comes along with this package.

Sizes as on the model cards. Sampling as in the authors' repositories: Wan-Video/Wan2.1, generate.py
(steps and shift by task and size, guidance 5) and README.md (guidance 6 and shift 8 to 12 for the
1.3B model, of which its commands take 8); Wan-Video/Wan2.2, wan/configs/wan_*.py (steps, shift,
boundary, guidance of both transformers). Checkpoints with the
same configs are told apart by their hub id alone; without one the first of them stands for all.
"""

from dataclasses import replace
from typing import Any

from lvsa.adapters.checkpoints.known import ABSENT, GIVEN, Configs, Defaults, KnownModel

HORIZON = 21  # 81 video frames
TI2V_HORIZON = 31  # 121 video frames

T2V = ("WanPipeline", "WanVideoToVideoPipeline")
I2V = ("WanImageToVideoPipeline",)
VACE = ("WanVACEPipeline",)


def transformers(*, layers: int, channels: int, two: bool = False, **entries: Any) -> Configs:
    """Configs of a pipeline with one transformer, or two alike.

    Args:
        layers: transformer blocks.
        channels: latent channels that go in.
        two: one transformer for high noise and one for low.
        entries: further entries of their config.
    """
    config = {"num_layers": layers, "in_channels": channels, **entries}
    return {"transformer": config, "transformer_2": config if two else ABSENT}


WAN21 = "Wan-Video/Wan2.1: generate.py, README.md"
WAN22 = "Wan-Video/Wan2.2: wan/configs"
NEGATIVE = "sample_neg_prompt in wan/configs/shared_config.py of github.com/Wan-Video/"

SMALL = Defaults(
    height=480,
    width=832,
    num_frames=81,
    steps=50,
    guidance=5.0,
    fps=16,
    flow_shift=5.0,
    negative_prompt=NEGATIVE + "Wan2.1",
    source=WAN21,
)
LARGE = replace(SMALL, height=720, width=1280)
TWO = replace(LARGE, steps=40, negative_prompt=NEGATIVE + "Wan2.2", source=WAN22)


def _from_image(sizes: Defaults) -> Defaults:
    """40 steps, and a smaller shift for a small video."""
    return replace(sizes, steps=40, flow_shift=5.0, flow_shift_480p=3.0)


# Image-to-video models take noise, mask and image latents side by side: 16 + 4 + 16 channels.
IMAGE_14B = transformers(layers=40, channels=36, image_dim=GIVEN, pos_embed_seq_len=ABSENT)
FIRST_AND_LAST_14B = transformers(layers=40, channels=36, image_dim=GIVEN, pos_embed_seq_len=GIVEN)

TINY_WAN = KnownModel(
    name="tiny-wan",
    repository=None,
    pipelines=T2V,
    horizon=HORIZON,
    defaults=Defaults(height=64, width=64, num_frames=81, steps=16, guidance=2.5, fps=16),
    configs=transformers(
        layers=6, channels=8, num_attention_heads=4, attention_head_dim=40, text_dim=64
    ),
)
WAN = (
    KnownModel(
        name="Wan 2.1 T2V 1.3B",
        repository="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        pipelines=T2V,
        horizon=HORIZON,
        defaults=replace(SMALL, guidance=6.0, flow_shift=8.0),
        configs=transformers(layers=30, channels=16),
    ),
    KnownModel(
        name="Wan 2.1 T2V 14B",
        repository="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        pipelines=T2V,
        horizon=HORIZON,
        defaults=LARGE,
        configs=transformers(layers=40, channels=16),
    ),
    KnownModel(
        name="Wan 2.1 I2V 14B 480P",
        repository="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_from_image(SMALL),
        configs=IMAGE_14B,
    ),
    KnownModel(
        name="Wan 2.1 I2V 14B 720P",
        repository="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_from_image(LARGE),
        configs=IMAGE_14B,
    ),
    KnownModel(
        name="Wan 2.1 FLF2V 14B 720P",
        repository="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=replace(LARGE, flow_shift=16.0),
        configs=FIRST_AND_LAST_14B,
    ),
    KnownModel(
        name="Wan 2.1 VACE 1.3B",
        repository="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        pipelines=VACE,
        horizon=HORIZON,
        defaults=replace(SMALL, flow_shift=16.0),
        configs=transformers(layers=30, channels=16),
    ),
    KnownModel(
        name="Wan 2.1 VACE 14B",
        repository="Wan-AI/Wan2.1-VACE-14B-diffusers",
        pipelines=VACE,
        horizon=HORIZON,
        defaults=replace(LARGE, flow_shift=16.0),
        configs=transformers(layers=40, channels=16),
    ),
    KnownModel(
        # Converted by a third party; its authors' weights are alibaba-pai/Wan2.2-VACE-Fun-A14B.
        # Sampling as in aigc-apps/VideoX-Fun, examples/wan2.2_vace_fun (with UniPC) and config/.
        name="Wan 2.2 VACE-Fun A14B",
        repository="linoyts/Wan2.2-VACE-Fun-14B-diffusers",
        pipelines=VACE,
        horizon=HORIZON,
        defaults=replace(
            SMALL,
            guidance_2=5.0,
            flow_shift=12.0,
            boundary=0.875,
            negative_prompt="negative_prompt in examples/wan2.2_vace_fun of "
            "github.com/aigc-apps/VideoX-Fun",
            source="aigc-apps/VideoX-Fun: examples/wan2.2_vace_fun",
        ),
        configs=transformers(layers=40, channels=16, two=True),
    ),
    KnownModel(
        name="Wan 2.2 T2V A14B",
        repository="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        pipelines=T2V[:1],
        horizon=HORIZON,
        defaults=replace(TWO, guidance=4.0, guidance_2=3.0, flow_shift=12.0, boundary=0.875),
        configs=transformers(layers=40, channels=16, two=True),
    ),
    KnownModel(
        name="Wan 2.2 I2V A14B",
        repository="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=replace(
            TWO, height=480, width=832, guidance=3.5, guidance_2=3.5, flow_shift=5.0, boundary=0.9
        ),
        configs=transformers(layers=40, channels=36, two=True, image_dim=ABSENT),
    ),
    KnownModel(
        name="Wan 2.2 TI2V 5B",
        repository="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        pipelines=(T2V[0], *I2V),
        horizon=TI2V_HORIZON,
        defaults=replace(
            TWO,
            height=704,
            width=1280,
            num_frames=121,
            steps=50,
            guidance=5.0,
            flow_shift=5.0,
            fps=24,
        ),
        configs=transformers(layers=30, channels=48),
    ),
    TINY_WAN,
)
