"""What differs between models: the contract that every adapter fills, in two parts.

`AttentionAdapter` (in `lvsa.model`) is what attention needs of a model: projections, rotation,
output. `PipelineAdapter` is what a pipeline needs: geometry, checkpoints, plan, installation. A
`ModelAdapter` is both. Three methods have no default: `extract_qkv`, `apply_rotary` and
`attention_modules`; the training horizon is a number. Everything else serves a diffusers pipeline
with a causal VAE and a patchifying transformer; a family overrides what is different there.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lvsa.adapters.checkpoints import KnownModel, recognize
from lvsa.cp_plans import ModelPlan, plan_for
from lvsa.cp_plans.apply import AppliedPlan, apply_plan
from lvsa.cp_plans.base import patch_sizes
from lvsa.errors import GridError, LVSAError
from lvsa.model import QKV, AttentionAdapter, CrossAttentionAdapter, split_heads
from lvsa.processor import LVSAProcessor
from lvsa.shards import FrameGrid

__all__ = [
    "QKV",
    "CrossAttentionAdapter",
    "ModelAdapter",
    "PipelineAdapter",
    "is_pipeline",
    "modules_named",
    "split_heads",
]

logger = logging.getLogger(__name__)
GuidanceStyle = Literal["calls", "batch"]


class PipelineAdapter(ABC):
    """What a pipeline of one family is made of.

    ``pipe`` is a diffusers pipeline, or a skeleton of one without weights.
    """

    name: ClassVar[str]
    """Name of the family."""
    pipelines: ClassVar[tuple[str, ...]]
    """Names of the diffusers pipeline classes that this adapter serves."""
    horizon: ClassVar[int]
    """Training horizon in latent frames, of checkpoints that are not in `known_models`."""
    known_models: ClassVar[tuple[KnownModel, ...]] = ()
    """Published checkpoints of the family; a pipeline takes its numbers from the one it fits."""
    replicated_methods: ClassVar[tuple[str, ...]] = (
        "encode_prompt",
        "encode_image",
        "prepare_latents",
    )
    """Methods of the pipelines that draw noise or encode inputs: one rank runs them for all."""
    guidance_style: ClassVar[GuidanceStyle] = "calls"
    """Whether the two passes of guidance are calls of their own, or halves of one batch."""
    component_dtypes: ClassVar[Mapping[str, torch.dtype]] = {}
    """Formats of components that the authors keep in another one than the transformer."""
    mask_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of a forward that its mask over text follows from, where it makes one anew."""
    schedulers: ClassVar[tuple[str, ...]] = (
        "UniPCMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    )
    """Classes of schedulers that the pipelines work with: here, those of flow matching that end
    without noise and draw none of their own."""
    tiled_vae: ClassVar[bool] = False
    """Whether the VAE must decode in tiles, because it takes the whole video at once."""

    # Geometry

    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoising transformers of a pipeline, by attribute name; the model in a compiled one.

        ``torch.compile`` returns a wrapper that runs what is installed on the model inside.
        """
        names = ("transformer", "transformer_2")
        found = {n: unwrap_module(m) for n in names if (m := getattr(pipe, n, None)) is not None}
        if not found:
            raise LVSAError(f"{type(pipe).__name__} has no transformer to install LVSA on")
        return found

    def temporal_factor(self, pipe: Any) -> int:
        """Video frames per latent frame."""
        return _entry(pipe.vae.config, "scale_factor_temporal", "temporal_compression_ratio")

    def spatial_factor(self, pipe: Any) -> int:
        """Pixels per latent pixel, in either direction."""
        return _entry(pipe.vae.config, "scale_factor_spatial", "spatial_compression_ratio")

    def patch_size(self, pipe: Any) -> tuple[int, int, int]:
        """Latent frames, rows and columns per token."""
        transformer: Any = next(iter(self.transformers(pipe).values()))
        return patch_sizes(transformer.config)

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
        return self.token_grid(self.latent_frames(num_frames, pipe), rows, columns, pipe)

    def token_grid(self, frames: int, rows: int, columns: int, pipe: Any) -> FrameGrid:
        """A grid of tokens of this model, which knows what they are in pixels and video frames."""
        return FrameGrid(
            frames, rows, columns, *self.size_multiples(pipe), self.temporal_factor(pipe)
        )

    def read_grid(
        self, pipe: Any, transformer: nn.Module, arguments: Mapping[str, Any]
    ) -> FrameGrid | None:
        """The token grid that a forward of the transformer works on, read off its arguments.

        Latents may come whole, ``hidden_states [B, C, T, H, W]``, or packed, ``[B, S, C]``, with
        their size in ``num_frames, height, width``.

        Returns:
            None where the arguments do not tell; the user must then say what size videos have.
        """
        hidden = arguments.get("hidden_states")
        if not isinstance(hidden, Tensor):
            return None
        packed = hidden.dim() == 3
        if packed:
            size = [arguments.get(name) for name in ("num_frames", "height", "width")]
        else:
            size = list(hidden.shape[2:])
        if len(size) != 3 or not all(isinstance(n, int) for n in size):
            return None
        frames, rows, columns = (
            n // p for n, p in zip(size, self.patch_size(pipe), strict=True) if n is not None
        )
        if packed and frames * rows * columns != hidden.shape[1]:
            return None
        return self.token_grid(frames, rows, columns, pipe)

    def condition_frames(self, pipe: Any, latent_frames: int) -> tuple[int, ...]:
        """Latent frames that hold conditioning images or video, as the pipeline implies them.

        They become anchors: every frame attends them. Image-to-video pipelines of diffusers hold
        their image in the first.
        """
        return (0,) if is_pipeline(pipe, "ImageToVideoPipeline") else ()

    # Checkpoints

    def training_horizon(self, pipe: Any) -> int:
        """Training horizon of this checkpoint, latent frames."""
        known = self.known_model(pipe)
        return known.horizon if known else self.horizon

    def known_model(self, pipe: Any) -> KnownModel | None:
        """The published checkpoint that a pipeline is; None for one that is not known."""
        return recognize(self.known_models, pipe)

    def check_guidance_parallel(self, pipe: Any) -> None:  # noqa: B027 - a hook
        """Stops for a pipeline whose guidance has not two passes in every step.

        A scale of 1 in a call is found in its first step.
        """

    # Arguments

    def pipeline_class(self, index: Mapping[str, Any], given: Collection[str]) -> str:
        """The pipeline to load a checkpoint into, which may be made for more than one.

        Args:
            index: contents of the checkpoint's model_index.json.
            given: what the user starts from: image, last_image, video, or nothing.
        """
        return str(index["_class_name"])

    def size_of_image(self, pipe: Any, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the video that a pipeline makes of an image of this size.

        None where it makes whatever size it is asked for.
        """
        return None

    def call_arguments(self, pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pipeline's call from those in the usual names of diffusers.

        Raises:
            LVSAError: for a value that this pipeline cannot take.
        """
        return arguments

    # Installation

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
        mesh: DeviceMesh,
        plan: ModelPlan | None = None,
    ) -> AppliedPlan | None:
        """Cuts a transformer's sequence among ``world`` ranks by its plan; None for one rank.

        Raises:
            PlanError: where the plan names what the transformer does not have.
        """
        return None if world == 1 else apply_plan(transformer, plan or plan_for(transformer), mesh)

    def patch_rotary_for_cp(self, rank: int, world: int) -> None:  # noqa: B027 - a hook
        """A place for models whose rotary embedding must be patched to know its rank.

        Nothing by default: plans cut the tables that a module makes, and `apply_rotary` takes its
        rank's rows of a table that comes whole.
        """


class ModelAdapter(AttentionAdapter, PipelineAdapter):
    """One model family: what attention and what a pipeline need to know of it."""


def is_pipeline(pipe: Any, name: str) -> bool:
    """Whether a pipeline's class, or one that it is made from, ends with this name."""
    return any(cls.__name__.endswith(name) for cls in type(pipe).__mro__)


def modules_named(transformer: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Path and module of every submodule of this name that takes an attention processor."""
    for path, module in transformer.named_modules():
        if path.rpartition(".")[2] == name and hasattr(module, "set_processor"):
            yield path, module


def _entry(config: Any, *names: str) -> int:
    """The first of these entries that a config has."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise LVSAError(
        f"the VAE's config has none of {', '.join(names)}; override the adapter's "
        "temporal_factor and spatial_factor"
    )
