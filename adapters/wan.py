"""Wan 2.1 and 2.2: self-attention over video, text and image by cross-attention."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_wan import _get_qkv_projections
from PIL.Image import Image
from torch import Tensor, nn

from lvsa.adapters.base import QKV, ModelAdapter, is_pipeline, modules_named, split_heads
from lvsa.adapters.checkpoints import ABSENT, GIVEN, KnownModel
from lvsa.adapters.checkpoints.wan import HORIZON, TI2V_HORIZON, WAN
from lvsa.cp_plans import ModelPlan, get_plan, plan_for
from lvsa.errors import GridError, LVSAError
from lvsa.rope import apply_rotary_1d
from lvsa.shards import FrameGrid

TI2V_SPATIAL_FACTOR = 16
TAKE_A_LAST_IMAGE = [
    model.name
    for model in WAN
    for config in [model.configs.get("transformer")]
    if isinstance(config, Mapping)
    and (config.get("pos_embed_seq_len") is GIVEN or config.get("image_dim") is ABSENT)
]


class WanAdapter(ModelAdapter):
    """Wan for text, image, first and last frame, video and control; one transformer or two."""

    name = "wan"
    pipelines: ClassVar[tuple[str, ...]] = (
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "WanVACEPipeline",
    )
    horizon = HORIZON
    known_models: ClassVar[tuple[KnownModel, ...]] = WAN
    replicated_methods = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
        "preprocess_conditions",
        "prepare_video_latents",
        "prepare_masks",
    )
    component_dtypes: ClassVar[Mapping[str, torch.dtype]] = {
        "vae": torch.float32,
        "image_encoder": torch.float32,
    }

    def training_horizon(self, pipe: Any) -> int:
        """Training horizon of the checkpoint, or where it is unknown of its kind: its VAE tells."""
        if self.known_model(pipe) is None and self.spatial_factor(pipe) == TI2V_SPATIAL_FACTOR:
            return TI2V_HORIZON
        return super().training_horizon(pipe)

    def token_grid(self, frames: int, rows: int, columns: int, pipe: Any) -> FrameGrid:
        """A grid of tokens within the model's rotary tables, one of which serves each axis.

        Raises:
            GridError: for more latent frames, rows or columns than a table has positions; names
                the largest number of video frames or pixels.
        """
        grid = super().token_grid(frames, rows, columns, pipe)
        configs: list[Any] = [t.config for t in self.transformers(pipe).values()]
        most = min(int(config.rope_max_seq_len) for config in configs)
        for given, what, largest in (
            (frames, "latent frames", f"{grid.video_frames(most)} video frames"),
            (rows, "rows of tokens", f"a height of {most * grid.pixels_per_row} pixels"),
            (columns, "columns of tokens", f"a width of {most * grid.pixels_per_column} pixels"),
        ):
            if given > most:
                raise GridError(
                    f"{given} {what} are more than the {most} that this model has rotary positions "
                    f"for; the largest that works: {largest}"
                )
        return grid

    def condition_frames(self, pipe: Any, latent_frames: int) -> tuple[int, ...]:
        """The first frame of an image-to-video pipeline, and the last of a first-last-frame model.

        A model made for both frames has a position table over the tokens of two images. Whether
        another one will be called with a last image cannot be seen here: name that frame in the
        settings' condition frames. VACE may condition any frames: name them too.
        """
        frames = super().condition_frames(pipe, latent_frames)
        configs: list[Any] = [t.config for t in self.transformers(pipe).values()]
        if frames and any(config.pos_embed_seq_len is not None for config in configs):
            return tuple(sorted({*frames, latent_frames - 1}))
        return frames

    def pipeline_class(self, index: Mapping[str, Any], given: Collection[str]) -> str:
        """TI2V-5B also starts from an image, a T2V checkpoint of one transformer from a video."""
        if index["_class_name"] == "WanPipeline":
            if index.get("expand_timesteps") and "image" in given:
                return "WanImageToVideoPipeline"
            two = (index.get("transformer_2") or [None])[0] is not None
            if "video" in given and not two and not index.get("expand_timesteps"):
                return "WanVideoToVideoPipeline"
        return super().pipeline_class(index, given)

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Video-to-video takes its length from the video instead of an argument.

        Raises:
            LVSAError: for a last image that the checkpoint has no use for, or lacks; a video of
                another length than ``num_frames``; a VAE whose size the video-to-video pipeline
                gets wrong.
        """
        if not is_pipeline(pipe, "WanVideoToVideoPipeline"):
            if is_pipeline(pipe, "ImageToVideoPipeline"):
                self._check_last_image(pipe, arguments.get("last_image") is not None)
            return arguments
        if pipe.vae_scale_factor_spatial != self.spatial_factor(pipe):
            raise LVSAError(
                f"{type(pipe).__name__} counts {pipe.vae_scale_factor_spatial} pixels to a latent "
                f"pixel; this model's VAE has {self.spatial_factor(pipe)}, so it cannot start "
                "from a video in this version of diffusers"
            )
        arguments = dict(arguments)
        wanted, video = arguments.pop("num_frames", None), arguments.get("video")
        if wanted is None or not isinstance(video, list):
            return arguments
        if len(video) != wanted and all(isinstance(frame, Image) for frame in video):
            raise LVSAError(
                f"the video has {len(video)} frames and num_frames is {wanted}; this pipeline "
                f"makes as many as it is given: set num_frames to {len(video)} or cut the video"
            )
        return arguments

    def _check_last_image(self, pipe: Any, given: bool) -> None:
        """One pipeline class loads models for a first image, for both, and for either.

        With an image encoder the transformer has embeddings for one image or for two; without, the
        last image is one more latent frame; with a timestep for every token it is never looked at.
        """
        configs: list[Any] = [t.config for t in self.transformers(pipe).values()]
        two = any(config.pos_embed_seq_len is not None for config in configs)
        one = any(config.image_dim is not None for config in configs) and not two
        if given and (one or getattr(pipe.config, "expand_timesteps", False)):
            raise LVSAError(
                f"--last-image: this {type(pipe).__name__} begins with an image and has no use for "
                f"a last one; models that take one: {', '.join(TAKE_A_LAST_IMAGE)}"
            )
        if two and not given:
            raise LVSAError(
                "--last-image is missing: this model was made for the first and the last frame, "
                "and takes no image alone"
            )

    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        q, k, v = _get_qkv_projections(attn, hidden, encoder)
        q, k = attn.norm_q(q), attn.norm_k(k)
        return split_heads(attn, q), split_heads(attn, k), split_heads(attn, v)

    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        return apply_rotary_1d(q, k, rotary_emb, local_seq, rank, world)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        return modules_named(transformer, "attn1")

    def model_plan(self, pipe: Any, transformer: nn.Module) -> ModelPlan:
        per_token = getattr(pipe.config, "expand_timesteps", False)
        return get_plan("wan-per-token-timesteps") if per_token else plan_for(transformer)
