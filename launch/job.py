"""Everything about a generation that is known before weights are loaded."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from lvsa.adapters import adapter_for
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.enable import make_pattern
from lvsa.adapters.install.riflex import check_riflex
from lvsa.backends import get_backend
from lvsa.launch.config import GenerateConfig
from lvsa.launch.inputs import Request, call_arguments, make_request
from lvsa.launch.models import ModelSource, defaults_for, find_model, skeleton_pipeline
from lvsa.pattern import Pattern, dense
from lvsa.shards import FrameGrid, Shards

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A checked plan of a generation.

    Args:
        skeleton: the model's pipeline with its networks on the meta device.
        pattern: dense without --lvsa.
        shards: the cut of the sequence; raises where it does not divide.
    """

    config: GenerateConfig
    source: ModelSource
    adapter: ModelAdapter
    skeleton: Any
    request: Request
    grid: FrameGrid
    pattern: Pattern
    dtype: torch.dtype
    world: int

    @property
    def shards(self) -> Shards:
        """The cut of the sequence among the ranks.

        Raises:
            DivisibilityError: where the tokens do not divide; names what would.
        """
        return Shards(self.grid, self.world)

    @property
    def transformer(self) -> Any:
        """The (first) transformer, without weights."""
        return next(iter(self.adapter.transformers(self.skeleton).values()))

    @property
    def transformer_config(self) -> Any:
        """Config of the (first) transformer."""
        return self.transformer.config

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.transformer_config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self.transformer_config.attention_head_dim)

    @property
    def layers(self) -> int:
        """Attentions over video tokens in one forward of the (first) transformer."""
        return sum(1 for _ in self.adapter.attention_modules(self.transformer))


def make_job(
    config: GenerateConfig, world: int, device: torch.device, request: Request | None = None
) -> Job:
    """Checks a configuration against the model's configs.

    Args:
        config: the user's settings.
        world: ranks that share the video.
        device: of this process; decides the automatic dtype.
        request: made of the same configuration by another rank, which read images and videos.

    Raises:
        LVSAError: for anything that cannot work; see `make_request`, `ModelAdapter.grid`.
    """
    source = find_model(config.model)
    adapter = adapter_for(source.pipeline_class)
    given = [name for name in ("image", "last_image", "video") if getattr(config, name)]
    wanted = adapter.pipeline_class(source.index, given)
    if wanted != source.pipeline_class:
        logger.info("%s is loaded as %s, to start from %s", source.name, wanted, ", ".join(given))
        source = replace(source, variant=wanted)
    get_backend(config.backend)
    skeleton = skeleton_pipeline(source)
    if config.dry_run and config.ranks is not None:
        world = config.ranks
    if request is None:
        defaults = defaults_for(source, adapter, skeleton)
        request = make_request(config, skeleton, adapter, defaults, world)
    call_arguments(request, adapter, skeleton, first_rank=True)
    grid = adapter.grid(request.num_frames, request.height, request.width, skeleton)
    if config.riflex:
        horizon = adapter.training_horizon(skeleton)
        check_riflex(adapter.transformers(skeleton), grid.frames, horizon, config.riflex_ratio)
    settings = config.attention
    if "last_image" in request.conditions:
        # Not every model that takes a last image shows it in its configs.
        settings = replace(
            settings, condition_frames=tuple({*settings.condition_frames, grid.frames - 1})
        )
    pattern = make_pattern(adapter, skeleton, grid, settings) if config.lvsa else dense(grid.frames)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    job = Job(
        config=config,
        source=source,
        adapter=adapter,
        skeleton=skeleton,
        request=request,
        grid=grid,
        pattern=pattern,
        dtype=DTYPES[dtype if config.dtype == "auto" else config.dtype],
        world=world,
    )
    if not config.dry_run:
        # A dry run tells what would divide; anything else cannot go on.
        Shards(job.grid, job.world)
    return job


def without_effect(job: Job) -> list[str]:
    """Settings that were given and change nothing for this model, length and world size."""
    config, pattern = job.config, job.pattern
    found = config.without_effect()
    if config.lvsa and pattern.is_dense:
        horizon = job.adapter.training_horizon(job.skeleton)
        found.append(
            f"--lvsa: every one of the {pattern.frames} latent frames attends all others anyway "
            f"(training horizon: {horizon})"
        )
    elif config.lvsa and config.attention.rotate_keyframes and pattern.n_offsets == 1:
        found.append("--rotate-keyframes: there is no keyframe that could move")
    elif config.lvsa and config.attention.rotate_keyframes and job.request.steps == 1:
        found.append("--rotate-keyframes: one denoising step has one set of keyframes")
    if config.exchange != GenerateConfig.exchange and job.world == 1:
        found.append(f"--exchange {config.exchange}: one process exchanges nothing")
    if config.negative_prompt and job.request.guidance <= 1:
        found.append(f"--negative-prompt: --guidance is {job.request.guidance:g}, which needs none")
    if not config.prompt:
        found.append("--prompt: empty, so the video shows anything")
    return found
