"""SkyReels-V2: Wan's architecture, trained on longer videos at 24 frames per second."""

from typing import Any

from torch import nn

from lvsa.adapters.known import Defaults, KnownModel
from lvsa.adapters.wan import WanAdapter, given, transformers_are
from lvsa.errors import LVSAError

# The 540P models were trained on 97 frames, which is also the default of every pipeline; the 720P
# models on 121. Their configs are the same: a 720P model that was not loaded by its hub id counts
# as a 540P model, and may set horizon = 31.
HORIZON = 25
HORIZON_720P = 31

T2V = ("SkyReelsV2Pipeline",)
I2V = ("SkyReelsV2ImageToVideoPipeline",)

T2V_14B = transformers_are(layers=40, channels=16)
I2V_14B = transformers_are(layers=40, channels=36, image_dim=given)


def _defaults(large: bool, guidance: float) -> Defaults:
    if large:
        return Defaults(720, 1280, num_frames=121, steps=50, guidance=guidance, fps=24)
    return Defaults(544, 960, num_frames=97, steps=50, guidance=guidance, fps=24)


class SkyReelsAdapter(WanAdapter):
    """SkyReels-V2 T2V and I2V, not those with diffusion forcing."""

    name = "skyreels"
    pipelines = (*T2V, *I2V)
    horizon = HORIZON
    known_models = (
        KnownModel(
            "SkyReels-V2 T2V 14B 540P",
            "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
            T2V,
            HORIZON,
            _defaults(large=False, guidance=6.0),
            T2V_14B,
        ),
        KnownModel(
            "SkyReels-V2 T2V 14B 720P",
            "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers",
            T2V,
            HORIZON_720P,
            _defaults(large=True, guidance=6.0),
            T2V_14B,
        ),
        KnownModel(
            "SkyReels-V2 I2V 1.3B 540P",
            "Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers",
            I2V,
            HORIZON,
            _defaults(large=False, guidance=5.0),
            transformers_are(layers=30, channels=36, image_dim=given),
        ),
        KnownModel(
            "SkyReels-V2 I2V 14B 540P",
            "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers",
            I2V,
            HORIZON,
            _defaults(large=False, guidance=5.0),
            I2V_14B,
        ),
        KnownModel(
            "SkyReels-V2 I2V 14B 720P",
            "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers",
            I2V,
            HORIZON_720P,
            _defaults(large=True, guidance=5.0),
            I2V_14B,
        ),
    )

    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The transformer of a pipeline without diffusion forcing.

        Raises:
            LVSAError: for a diffusion-forcing pipeline, or attention that is causal by blocks.
        """
        if any("DiffusionForcing" in cls.__name__ for cls in type(pipe).__mro__):
            raise LVSAError(
                f"{type(pipe).__name__} is not supported: diffusion forcing gives each latent "
                "frame a timestep and a scheduler of its own, so there is no one denoising step "
                "that keyframes could follow, and its modulation is applied outside of any module "
                f"that a plan could cut. Supported: {', '.join(self.pipelines)}"
            )
        found = super().transformers(pipe)
        for name, transformer in found.items():
            config: Any = transformer.config
            if config.num_frame_per_block != 1:
                raise LVSAError(
                    f"{name} has num_frame_per_block = {config.num_frame_per_block}: causal "
                    "attention between blocks of frames, which is not supported. Allowed: 1"
                )
        return found
