"""What differs between models: the contract that every adapter fills.

A model needs `extract_qkv`, `apply_rotary` and `attention_modules`, and its training horizon.
Everything else has a default that serves a diffusers pipeline with a causal VAE and a patchifying
transformer; a family overrides what is different there.

Shapes: B batch, L local video tokens, X text tokens, H heads, D head dim.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lvsa.adapters.known import KnownModel, recognize
from lvsa.backends import Backend
from lvsa.cp_plans import ModelPlan, plan_for
from lvsa.cp_plans.apply import AppliedPlan, apply_plan
from lvsa.errors import GridError, LVSAError
from lvsa.layout import full_layout
from lvsa.processor import QKV, LVSAProcessor
from lvsa.shards import FrameGrid

logger = logging.getLogger(__name__)


class ModelAdapter(ABC):
    """One model family. ``pipe`` is a diffusers pipeline, or a skeleton of one without weights."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """Names of the diffusers pipeline classes that this adapter serves."""
    horizon: ClassVar[int]
    """Latent frames of the videos that the model was trained on."""
    known_models: ClassVar[tuple[KnownModel, ...]] = ()
    """The family's published checkpoints; a pipeline takes its numbers from the first it fits."""
    replicated_methods: ClassVar[tuple[str, ...]] = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
    )
    """Methods of the pipelines that draw noise or encode inputs: one rank runs them for all."""
    float32_components: ClassVar[tuple[str, ...]] = ()
    """Components that the authors keep in float32 while the rest is in half precision."""
    tiled_vae: ClassVar[bool] = False
    """Whether the VAE must decode in tiles, because it takes the whole video at once."""

    # Geometry

    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoising transformers of a pipeline, by attribute name."""
        names = ("transformer", "transformer_2")
        found = {n: m for n in names if (m := getattr(pipe, n, None)) is not None}
        if not found:
            raise LVSAError(f"{type(pipe).__name__} has no transformer to install LVSA on")
        return found

    def temporal_factor(self, pipe: Any) -> int:
        """Video frames per latent frame."""
        return int(pipe.vae.config.scale_factor_temporal)

    def spatial_factor(self, pipe: Any) -> int:
        """Pixels per latent pixel, in either direction."""
        return int(pipe.vae.config.scale_factor_spatial)

    def patch_size(self, pipe: Any) -> tuple[int, int, int]:
        """Latent frames, rows and columns per token."""
        transformer = next(iter(self.transformers(pipe).values()))
        config: Any = transformer.config
        p_t, p_h, p_w = config.patch_size
        return int(p_t), int(p_h), int(p_w)

    def size_multiples(self, pipe: Any) -> tuple[int, int]:
        """Pixels (height, width) that one row and one column of tokens stand for."""
        _, p_h, p_w = self.patch_size(pipe)
        factor = self.spatial_factor(pipe)
        return factor * p_h, factor * p_w

    def latent_frames(self, num_frames: int, pipe: Any) -> int:
        """T, latent frames of a video.

        Raises:
            GridError: for a number of frames that the VAE does not make; names the nearest ones.
        """
        factor = self.temporal_factor(pipe)
        latent, rest = divmod(num_frames - 1, factor)
        if num_frames < 1 or rest:
            below = max(num_frames - 1, 0) // factor * factor + 1
            near = f"{below} or {below + factor}" if num_frames > 0 else str(below)
            raise GridError(
                f"{num_frames} frames are not {factor}k + 1, which this model's VAE makes; "
                f"nearest: {near}"
            )
        return latent + 1

    def patches_per_frame(self, height: int, width: int, pipe: Any) -> int:
        """P, tokens per latent frame.

        Raises:
            GridError: for a size that is no multiple of the token size; names the nearest ones.
        """
        rows, columns = self.token_rows_and_columns(height, width, pipe)
        return rows * columns

    def token_rows_and_columns(self, height: int, width: int, pipe: Any) -> tuple[int, int]:
        """Rows and columns of tokens in a latent frame; errors as `patches_per_frame`."""
        counts = []
        for name, size, multiple in zip(
            ("height", "width"), (height, width), self.size_multiples(pipe), strict=True
        ):
            if size < multiple or size % multiple:
                below = max(size // multiple, 0) * multiple
                near = [n for n in (below, below + multiple) if n > 0]
                raise GridError(
                    f"{name} is {size} pixels; it must be a multiple of {multiple} for this model; "
                    f"nearest: {' or '.join(map(str, near))}"
                )
            counts.append(size // multiple)
        return counts[0], counts[1]

    def grid(self, num_frames: int, height: int, width: int, pipe: Any) -> FrameGrid:
        """The token grid of a video; errors as `latent_frames` and `patches_per_frame`."""
        rows, columns = self.token_rows_and_columns(height, width, pipe)
        row_pixels, column_pixels = self.size_multiples(pipe)
        return FrameGrid(
            self.latent_frames(num_frames, pipe),
            rows,
            columns,
            row_pixels,
            column_pixels,
            self.temporal_factor(pipe),
        )

    def training_horizon(self, pipe: Any) -> int:
        """The training horizon of this checkpoint, latent frames."""
        known = self.known_model(pipe)
        return known.horizon if known else self.horizon

    def known_model(self, pipe: Any) -> KnownModel | None:
        """The published checkpoint that a pipeline is, by its configs."""
        return recognize(self.known_models, pipe)

    def pipeline_class(self, index: Mapping[str, Any], given: Collection[str]) -> str:
        """The pipeline to load a checkpoint into, which may be made for more than one.

        Args:
            index: contents of the checkpoint's model_index.json.
            given: what the user starts from: image, last_image, video, or nothing.
        """
        return str(index["_class_name"])

    def condition_frames(self, pipe: Any, latent_frames: int) -> tuple[int, ...]:
        """Latent frames that hold conditioning images or video, as the pipeline implies them.

        They become anchors: every frame attends them.
        """
        return ()

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call from those in the usual names of diffusers.

        Raises:
            LVSAError: for an argument that this pipeline cannot take.
        """
        return arguments

    # Projections

    @abstractmethod
    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        """Queries, keys and values ``[B, L, H, D]`` of the video tokens, normalised, not rotated.

        In a cross-attention module only the queries are used.
        """

    def extract_encoder_qkv(self, attn: Any, encoder: Tensor) -> QKV | None:
        """The same of text tokens ``[B, X, H, D]`` that take part in the attention.

        None where text only enters by cross-attention.
        """
        return None

    def extract_cross_attn_kv(self, attn: Any, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text in a cross-attention module."""
        raise LVSAError(
            f"adapter {self.name!r} has no cross-attention; its processor was installed on "
            f"{type(attn).__name__}, which was given encoder states"
        )

    def split_encoder_for_cross_attn(
        self, attn: Any, encoder: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Image part (None without one) and text part of the encoder states."""
        return None, encoder

    @abstractmethod
    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        """Rotates local queries and keys by their positions in the whole sequence."""

    def cross_attention(
        self, attn: Any, query: Tensor, encoder_image: Tensor, backend: Backend
    ) -> Tensor:
        """Video queries ``[B, L, H, D]`` over image embeddings, to be added to those over text."""
        k, v = self.extract_image_kv(attn, encoder_image)
        return backend.attend(query, k, v, full_layout(query.shape[1], k.shape[1])).out_BLHD

    def extract_image_kv(self, attn: Any, encoder_image: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image embeddings in a cross-attention module."""
        raise LVSAError(f"adapter {self.name!r} has no attention over image embeddings")

    def output_projection(self, attn: Any, hidden: Tensor, query_dtype: torch.dtype) -> Tensor:
        """``[B, L, H·D]`` through the module's output layers."""
        hidden = hidden.to(query_dtype)
        for layer in attn.to_out:
            hidden = layer(hidden)
        return hidden

    def format_output(
        self,
        attn: Any,
        hidden: Tensor,
        encoder_output: Tensor | None,
        encoder_seq_len: int,
        dtype: torch.dtype,
    ) -> Any:
        """What the model's own processor returns: hidden states, or those and the text's."""
        return hidden

    # Integration

    @abstractmethod
    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        """Path and module of each attention over video tokens in a transformer."""

    def install_processor(self, pipe: Any, processor: LVSAProcessor) -> int:
        """Puts the processor on every attention over video tokens; returns how many.

        Raises:
            LVSAError: where there is none.
        """
        count = 0
        for transformer in self.transformers(pipe).values():
            for _, module in self.attention_modules(transformer):
                module.set_processor(processor)
                count += 1
        if not count:
            raise LVSAError(
                f"adapter {self.name!r} found no attention to install LVSA on in "
                f"{type(pipe).__name__}"
            )
        logger.info("[LVSA] installed on %d blocks", count)
        return count

    def model_plan(self, pipe: Any, transformer: nn.Module) -> ModelPlan:
        """The context-parallel plan of a transformer of this pipeline."""
        return plan_for(transformer)

    def setup_context_parallel(
        self,
        transformer: nn.Module,
        world: int,
        *,
        grid: FrameGrid,
        mesh: DeviceMesh,
        plan: ModelPlan | None = None,
    ) -> AppliedPlan | None:
        """Cuts a transformer's sequence among ``world`` ranks by its plan; None for one rank.

        Raises:
            PlanError: where the plan does not fit the transformer.
        """
        if world == 1:
            return None
        return apply_plan(transformer, plan or plan_for(transformer), mesh, grid)

    def patch_rotary_for_cp(self, rank: int, world: int) -> None:  # noqa: B027 - a hook
        """A place for models whose rotary embedding must be patched to know its rank.

        Nothing by default: plans cut the tables that a module makes, and `apply_rotary` takes its
        rank's rows of a table that comes whole.
        """


def split_heads(attn: Any, x: Tensor) -> Tensor:
    """``[B, L, H·D]`` to ``[B, L, H, D]``."""
    return x.unflatten(2, (attn.heads, -1))
