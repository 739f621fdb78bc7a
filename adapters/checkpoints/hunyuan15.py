"""HunyuanVideo 1.5: two sizes, from text or from an image, distilled or not; 33 latent frames.

Distilled weights have the configs of the others, but for two traces: a guider at scale 1, and
mean-flow timesteps where few steps are enough. They stand before the plain ones, which fit too.

Steps, guidance and shift as in the table "Optimal Inference Configurations" in README.md of
Tencent-Hunyuan/HunyuanVideo-1.5, which recommends no negative prompt.
"""

from collections.abc import Mapping
from typing import Any

from lvsa.adapters.checkpoints.known import Configs, Defaults, KnownModel

HORIZON = 33  # 129 video frames

T2V, I2V = "HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"
# The transformer's `target_size`, and the size in pixels that the pipelines choose by it for 16:9.
SIZES = {"480p": (640, 480, 848), "720p": (960, 720, 1280)}

FEW_STEPS = {"use_meanflow": True}
DISTILLED = {"guidance_scale": 1.0}


def _known(
    size: str,
    pipeline: str,
    kind: str = "",
    *,
    steps: int = 50,
    guidance: float = 1.0,
    shift: float = 5.0,
    transformer: Mapping[str, Any] | None = None,
    guider: Mapping[str, Any] | None = None,
) -> KnownModel:
    """A checkpoint of a size and a task, with what its configs say beyond the size."""
    target, height, width = SIZES[size]
    task = "t2v" if pipeline == T2V else "i2v"
    configs: Configs = {"transformer": {"target_size": target, **(transformer or {})}}
    return KnownModel(
        name=f"HunyuanVideo 1.5 {size} {task.upper()} {kind.replace('_', ' ')}".rstrip(),
        repository="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-"
        + f"{size}_{task}_{kind}".rstrip("_"),
        pipelines=(pipeline,),
        horizon=HORIZON,
        defaults=Defaults(
            height,
            width,
            num_frames=121,
            steps=steps,
            guidance=guidance,
            fps=24,
            flow_shift=shift,
            source="Tencent-Hunyuan/HunyuanVideo-1.5: README.md",
        ),
        configs=configs if guider is None else {**configs, "guider": guider},
    )


HUNYUAN15 = (
    _known("480p", I2V, "step_distilled", steps=12, shift=7.0, transformer=FEW_STEPS),
    _known("480p", T2V, "distilled", guider=DISTILLED),
    _known("480p", I2V, "distilled", guider=DISTILLED),
    _known("720p", I2V, "distilled", shift=7.0, guider=DISTILLED),
    _known("480p", T2V, guidance=6.0),
    _known("480p", I2V, guidance=6.0),
    _known("720p", T2V, guidance=6.0, shift=9.0),
    _known("720p", I2V, guidance=6.0, shift=7.0),
)
