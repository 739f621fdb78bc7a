"""SkyReels-V2: trained at 24 frames per second on 97 frames (540P) or 121 (720P).

97 frames are also the default of every pipeline. The configs of 540P and 720P are the same: a 720P
model that was not loaded by its hub id counts as a 540P model, and may set horizon = 31.

Sampling as in SkyworkAI/SkyReels-V2, README.md: 50 steps, guidance 6 and shift 8 from text, 5 and 5
from an image. (A later note there recommends shift 3 from an image.)
"""

from dataclasses import replace

from lvsa.adapters.checkpoints.known import GIVEN, Defaults, KnownModel
from lvsa.adapters.checkpoints.wan import transformers

HORIZON = 25
HORIZON_720P = 31

T2V = ("SkyReelsV2Pipeline",)
I2V = ("SkyReelsV2ImageToVideoPipeline",)

T2V_14B = transformers(layers=40, channels=16)
I2V_14B = transformers(layers=40, channels=36, image_dim=GIVEN)


SMALL = Defaults(
    height=544,
    width=960,
    num_frames=97,
    steps=50,
    guidance=6.0,
    fps=24,
    flow_shift=8.0,
    negative_prompt="negative_prompt in generate_video.py of github.com/SkyworkAI/SkyReels-V2",
    source="SkyworkAI/SkyReels-V2: README.md",
)
LARGE = replace(SMALL, height=720, width=1280, num_frames=121)


def _from_image(sizes: Defaults) -> Defaults:
    return replace(sizes, guidance=5.0, flow_shift=5.0)


SKYREELS = (
    KnownModel(
        name="SkyReels-V2 T2V 14B 540P",
        repository="Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        pipelines=T2V,
        horizon=HORIZON,
        defaults=SMALL,
        configs=T2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 T2V 14B 720P",
        repository="Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
        pipelines=T2V,
        horizon=HORIZON_720P,
        defaults=LARGE,
        configs=T2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 I2V 1.3B 540P",
        repository="Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_from_image(SMALL),
        configs=transformers(layers=30, channels=36, image_dim=GIVEN),
    ),
    KnownModel(
        name="SkyReels-V2 I2V 14B 540P",
        repository="Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_from_image(SMALL),
        configs=I2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 I2V 14B 720P",
        repository="Skywork/SkyReels-V2-I2V-14B-720P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON_720P,
        defaults=_from_image(LARGE),
        configs=I2V_14B,
    ),
)
