"""HunyuanVideo 1.5: video and text in one attention, the text masked, guidance in a guider."""

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lvsa.adapters.base import ModelAdapter, split_heads
from lvsa.adapters.known import Defaults, KnownModel
from lvsa.errors import LVSAError
from lvsa.processor import QKV
from lvsa.rope import apply_rotary_3d_cos_sin

logger = logging.getLogger(__name__)

T2V, I2V = "HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"
HORIZON = 33
# Pixels, as the pipelines choose them for 16:9 from the transformer's `target_size`.
SIZES = {"480p": (640, 480, 848), "720p": (960, 720, 1280)}


def _known(resolution: str, pipeline: str, kind: str, guidance: float, steps: int) -> KnownModel:
    target, height, width = SIZES[resolution]
    task = "t2v" if pipeline == T2V else "i2v"
    variant = f"{resolution}_{task}{kind and '_' + kind}"

    def fits(pipe: Any) -> bool:
        config = pipe.transformer.config
        # Distilled weights have the configs of the others, but for these two traces.
        is_kind = {
            "step_distilled": config.use_meanflow,
            "distilled": _guidance(pipe) == 1.0,
            "": True,
        }[kind]
        return bool(config.target_size == target and is_kind)

    return KnownModel(
        name=f"HunyuanVideo 1.5 {resolution} {task.upper()}{kind and ' ' + kind.replace('_', ' ')}",
        repository=f"hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-{variant}",
        pipelines=(pipeline,),
        horizon=HORIZON,
        defaults=Defaults(height, width, num_frames=121, steps=steps, guidance=guidance, fps=24),
        fits=fits,
    )


def _guidance(pipe: Any) -> float | None:
    return getattr(getattr(pipe, "guider", None), "guidance_scale", None)


# The first that fits counts, so that the more special ones come first.
KNOWN = (
    _known("480p", I2V, "step_distilled", 1.0, 12),
    *(
        _known(resolution, pipeline, kind, guidance, 50)
        for kind, guidance in (("distilled", 1.0), ("", 6.0))
        for resolution in SIZES
        for pipeline in (T2V, I2V)
        # Of the 720p T2V model no distilled weights are known.
        if (resolution, pipeline, kind) != ("720p", T2V, "distilled")
    ),
)


class HunyuanVideo15Adapter(ModelAdapter):
    """HunyuanVideo 1.5, text to video and image to video."""

    name = "hunyuan15"
    pipelines = (T2V, I2V)
    horizon = HORIZON
    known_models = KNOWN
    tiled_vae = True
    replicated_methods = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
        "prepare_cond_latents_and_mask",
    )

    # Geometry

    def temporal_factor(self, pipe: Any) -> int:
        return int(pipe.vae.config.temporal_compression_ratio)

    def spatial_factor(self, pipe: Any) -> int:
        return int(pipe.vae.config.spatial_compression_ratio)

    def patch_size(self, pipe: Any) -> tuple[int, int, int]:
        config = pipe.transformer.config
        return int(config.patch_size_t), int(config.patch_size), int(config.patch_size)

    def condition_frames(self, pipe: Any, latent_frames: int) -> tuple[int, ...]:
        """The image is the first latent frame of image to video."""
        return (0,) if _is_i2v(pipe) else ()

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments; its guidance scale goes to a guider of this pipeline's own.

        Image to video takes no size: it crops the image to the size that the image's shape and
        the model's `target_size` give. A size is checked against that one and then dropped.

        Raises:
            LVSAError: for an argument that the pipeline lacks, a size that it would not make of
                the image, or a guidance scale that its guider does not have.
        """
        arguments = dict(arguments)
        guidance = arguments.pop("guidance_scale", None)
        if _is_i2v(pipe):
            _check_size(pipe, arguments)
        known = inspect.signature(type(pipe).__call__).parameters
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise LVSAError(
                f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes "
                f"{', '.join([*known][1:])} and guidance_scale"
            )
        if guidance is not None:
            _set_guidance(pipe, float(guidance))
        return arguments

    # Projections

    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        q, k, v = (split_heads(attn, to(hidden)) for to in (attn.to_q, attn.to_k, attn.to_v))
        return attn.norm_q(q), attn.norm_k(k), v

    def extract_encoder_qkv(self, attn: Any, encoder: Tensor) -> QKV | None:
        q, k, v = (
            split_heads(attn, project(encoder))
            for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        )
        q = q if attn.norm_added_q is None else attn.norm_added_q(q)
        k = k if attn.norm_added_k is None else attn.norm_added_k(k)
        return q, k, v

    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        return apply_rotary_3d_cos_sin(q, k, rotary_emb, local_seq, rank, world)

    def format_output(
        self,
        attn: Any,
        hidden: Tensor,
        encoder_output: Tensor | None,
        encoder_seq_len: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Video and text, ``[B, L, H·D]`` and ``[B, X, H·D]``, both through output layers."""
        assert encoder_output is not None, "every block attends video and text together"
        return hidden, attn.to_add_out(encoder_output.to(dtype))

    # Integration

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, module in transformer.named_modules():
            # The text refiner has attention of its own, over text only.
            if path.startswith("transformer_blocks.") and path.endswith(".attn"):
                yield path, module


def _is_i2v(pipe: Any) -> bool:
    return any(cls.__name__ == I2V for cls in type(pipe).__mro__)


def _check_size(pipe: Any, arguments: dict[str, Any]) -> None:
    """Takes height and width out of an image-to-video pipeline's arguments."""
    image = arguments.get("image")
    if not isinstance(image, Image.Image):
        raise LVSAError(f"{I2V} needs a PIL image as `image`; got {type(image).__name__}")
    made = pipe.video_processor.calculate_default_height_width(
        height=image.size[1], width=image.size[0], target_size=pipe.target_size
    )
    for name, size in zip(("height", "width"), made, strict=True):
        if arguments.pop(name, size) not in (size, None):
            raise LVSAError(
                f"an image of {image.size[0]} × {image.size[1]} pixels (width × height) becomes a "
                f"video of {made[1]} × {made[0]}: {I2V} takes the size from the image and the "
                f"model's target_size {pipe.target_size}. Ask for height {made[0]} and width "
                f"{made[1]}, or give an image of another shape"
            )


def _set_guidance(pipe: Any, scale: float) -> None:
    """Gives the pipeline a guider with this scale; whoever shares the old guider keeps it."""
    guider: Any = getattr(pipe, "guider", None)
    if not hasattr(guider, "guidance_scale"):
        raise LVSAError(
            f"guidance_scale is {scale}, but the guider of {type(pipe).__name__} is "
            f"{type(guider).__name__}, which has none; leave it out and set up the guider"
        )
    if guider.guidance_scale == scale:
        return
    if not getattr(guider, "_enabled", True):
        raise LVSAError(
            f"guidance_scale is {scale}, but the pipeline's guider is disabled; enable it with "
            "pipe.guider.enable() or leave guidance_scale out"
        )
    logger.info("guidance scale of the guider: %s, was %s", scale, guider.guidance_scale)
    guider = copy.copy(guider)
    guider.guidance_scale = scale
    guider.register_to_config(guidance_scale=scale)
    pipe.guider = guider
