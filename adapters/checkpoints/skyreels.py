"""SkyReels-V2: trained at 24 frames per second on 97 frames (540P) or 121 (720P).

97 frames are also the default of every pipeline. The configs of 540P and 720P are the same: a 720P
model that was not loaded by its hub id counts as a 540P model, and may set horizon = 31.
"""

from lvsa.adapters.checkpoints.known import GIVEN, Defaults, KnownModel
from lvsa.adapters.checkpoints.wan import transformers

HORIZON = 25
HORIZON_720P = 31

T2V = ("SkyReelsV2Pipeline",)
I2V = ("SkyReelsV2ImageToVideoPipeline",)

T2V_14B = transformers(layers=40, channels=16)
I2V_14B = transformers(layers=40, channels=36, image_dim=GIVEN)


def _540p(guidance: float) -> Defaults:
    return Defaults(544, 960, num_frames=97, steps=50, guidance=guidance, fps=24)


def _720p(guidance: float) -> Defaults:
    return Defaults(720, 1280, num_frames=121, steps=50, guidance=guidance, fps=24)


SKYREELS = (
    KnownModel(
        name="SkyReels-V2 T2V 14B 540P",
        repository="Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        pipelines=T2V,
        horizon=HORIZON,
        defaults=_540p(guidance=6.0),
        configs=T2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 T2V 14B 720P",
        repository="Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
        pipelines=T2V,
        horizon=HORIZON_720P,
        defaults=_720p(guidance=6.0),
        configs=T2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 I2V 1.3B 540P",
        repository="Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_540p(guidance=5.0),
        configs=transformers(layers=30, channels=36, image_dim=GIVEN),
    ),
    KnownModel(
        name="SkyReels-V2 I2V 14B 540P",
        repository="Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON,
        defaults=_540p(guidance=5.0),
        configs=I2V_14B,
    ),
    KnownModel(
        name="SkyReels-V2 I2V 14B 720P",
        repository="Skywork/SkyReels-V2-I2V-14B-720P-Diffusers",
        pipelines=I2V,
        horizon=HORIZON_720P,
        defaults=_720p(guidance=5.0),
        configs=I2V_14B,
    ),
)
