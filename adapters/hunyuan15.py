"""HunyuanVideo 1.5: video and text in one attention, the text masked, guidance in a guider."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from lvsa.adapters.base import QKV, ModelAdapter, is_pipeline, modules_named, split_heads
from lvsa.adapters.checkpoints.hunyuan15 import HORIZON, HUNYUAN15
from lvsa.errors import LVSAError
from lvsa.mesh import PASSES
from lvsa.rope import apply_rotary_3d_cos_sin

logger = logging.getLogger(__name__)

T2V, I2V = "HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"


class HunyuanVideo15Adapter(ModelAdapter):
    """HunyuanVideo 1.5, text to video and image to video."""

    name = "hunyuan15"
    pipelines = (T2V, I2V)
    horizon = HORIZON
    known_models = HUNYUAN15
    tiled_vae = True
    # As in hyvideo/pipelines/hunyuan_video_pipeline.py of Tencent-Hunyuan/HunyuanVideo-1.5. (Later
    # versions there keep the VAE in float32 where the GPU has more than 23 GB.)
    component_dtypes: ClassVar[Mapping[str, torch.dtype]] = {
        "vae": torch.float16,
        "text_encoder": torch.float16,
        "text_encoder_2": torch.float16,
        "image_encoder": torch.float16,
    }
    mask_arguments = ("encoder_attention_mask", "encoder_attention_mask_2", "image_embeds")
    # Its pipelines set the noise levels themselves, which few schedulers take.
    schedulers = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")
    replicated_methods = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
        "prepare_cond_latents_and_mask",
    )

    def size_of_image(self, pipe: Any, height: int, width: int) -> tuple[int, int] | None:
        """The size nearest in shape that the model's `target_size` allows, for image to video."""
        return _size_of_image(pipe, height, width) if is_pipeline(pipe, I2V) else None

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments; its guidance scale goes to a guider of this pipeline's own.

        Image to video takes no size: it crops the image to the size that the image's shape and
        the model's `target_size` give. A size is checked against that one and then dropped.

        Raises:
            LVSAError: for a size that the pipeline would not make of the image, or a guidance
                scale that its guider does not have.
        """
        arguments = dict(arguments)
        guidance = arguments.pop("guidance_scale", None)
        if is_pipeline(pipe, I2V):
            _check_size(pipe, arguments)
        if guidance is not None:
            _set_guidance(pipe, float(guidance))
        return arguments

    def check_guidance_parallel(self, pipe: Any) -> None:
        """Stops for a guider that has other passes than two in some step."""
        guider: Any = getattr(pipe, "guider", None)
        passes = getattr(guider, "num_conditions", None)
        config: Any = getattr(guider, "config", {})
        whole = config.get("start", 0.0) == 0.0 and config.get("stop", 1.0) == 1.0
        if passes != PASSES or not whole:
            raise LVSAError(
                f"guidance in parallel takes a guider with {PASSES} passes in every step; the "
                f"{type(guider).__name__} of this pipeline has {passes}, from "
                f"{config.get('start')} to {config.get('stop')} of the steps"
            )

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

    # Installation

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, module in modules_named(transformer, "attn"):
            # The text refiner has attention of its own, over text only.
            if path.startswith("transformer_blocks."):
                yield path, module


def _size_of_image(pipe: Any, height: int, width: int) -> tuple[int, int]:
    made = pipe.video_processor.calculate_default_height_width(
        height=height, width=width, target_size=pipe.target_size
    )
    return int(made[0]), int(made[1])


def _check_size(pipe: Any, arguments: dict[str, Any]) -> None:
    """Takes height and width out of an image-to-video pipeline's arguments."""
    image = arguments.get("image")
    if not isinstance(image, Image.Image):
        raise LVSAError(f"{I2V} needs a PIL image as `image`; got {type(image).__name__}")
    made = _size_of_image(pipe, image.height, image.width)
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
