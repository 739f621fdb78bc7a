"""SkyReels-V2: Wan's architecture, trained on longer videos at 24 frames per second."""

from typing import Any

from torch import nn

from lvsa.adapters.checkpoints.skyreels import HORIZON, SKYREELS
from lvsa.adapters.wan import WanAdapter
from lvsa.errors import LVSAError


class SkyReelsAdapter(WanAdapter):
    """SkyReels-V2 T2V and I2V, not those with diffusion forcing."""

    name = "skyreels"
    pipelines = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    horizon = HORIZON
    known_models = SKYREELS

    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The transformer of a pipeline without diffusion forcing.

        Raises:
            LVSAError: for a diffusion-forcing pipeline, or attention that is causal by blocks.
        """
        if any("DiffusionForcing" in cls.__name__ for cls in type(pipe).__mro__):
            raise LVSAError(
                f"{type(pipe).__name__} is not supported: diffusion forcing gives each latent "
                "frame a timestep and a scheduler of its own, so keyframes have no single "
                "denoising step to follow, and it modulates tokens outside of any module that a "
                f"plan could cut. Supported: {', '.join(self.pipelines)}"
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
