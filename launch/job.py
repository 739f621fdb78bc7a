"""Everything about a generation that is known before weights are loaded."""

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from lvsa.adapters import adapter_for
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.checkpoints import Defaults, KnownModel
from lvsa.adapters.checkpoints.loras import DistilledLora, distilled_lora
from lvsa.adapters.install.grids import make_pattern
from lvsa.adapters.install.rope_patch import RIFLExOptions, check_riflex
from lvsa.errors import CheckpointError, LVSAError
from lvsa.hardware import find_hardware
from lvsa.heads import check_heads
from lvsa.launch.config import GenerateConfig
from lvsa.launch.inputs import FILES, Request, call_arguments, make_request
from lvsa.launch.kernel import kernel_for
from lvsa.launch.loading.lora import FoundLoRA, check_loras
from lvsa.launch.loading.models import ModelSource, find_model
from lvsa.launch.loading.skeleton import BROKEN_CONFIG, defaults_for, skeleton_pipeline
from lvsa.launch.media.sharing import check_sharing
from lvsa.launch.profiling import check_profile
from lvsa.launch.sampling import with_lora
from lvsa.launch.tuning.prepare import check_tuning
from lvsa.launch.tuning.sharding import check_shared_weights
from lvsa.mesh import MeshSizes, mesh_sizes
from lvsa.pattern import FrameMatrices, Pattern, dense
from lvsa.shards import FrameGrid, Shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model without its weights, opened once for all videos of a job.

    Args:
        skeleton: its pipeline with the networks on the meta device.
        defaults: of its videos; None where it is not known.
        loras: to merge into its weights.
        distilled: how one of them is sampled, where that is known.
    """

    source: ModelSource
    adapter: ModelAdapter
    skeleton: Any
    defaults: Defaults | None
    loras: tuple[FoundLoRA, ...] = ()
    distilled: DistilledLora | None = None


@dataclass(frozen=True)
class Job:
    """A checked plan of a generation.

    Args:
        skeleton: the model's pipeline with its networks on the meta device.
        pattern: dense without --lvsa.
        dtype: of the weights.
        device: of this process.
        kernel: what computes the attention on this machine, or that nothing does, in words.
        mesh: the ranks of the job, by what they share.
    """

    config: GenerateConfig
    source: ModelSource
    adapter: ModelAdapter
    skeleton: Any
    request: Request
    grid: FrameGrid
    pattern: Pattern
    dtype: torch.dtype
    device: torch.device
    kernel: str
    mesh: MeshSizes

    @property
    def world(self) -> int:
        """Ranks that the tokens are cut among."""
        return self.mesh.sequence

    @property
    def shards(self) -> Shards:
        """The cut of the sequence among the ranks.

        Raises:
            DivisibilityError: where the tokens do not divide; names what would.
        """
        return Shards(self.grid, self.world)

    @property
    def horizon(self) -> int:
        """Latent frames of the videos that the model was trained on."""
        return self.adapter.training_horizon(self.skeleton)

    @property
    def transformer(self) -> Any:
        """The (first) transformer, without weights."""
        return next(iter(self.adapter.transformers(self.skeleton).values()))

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.transformer.config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self.transformer.config.attention_head_dim)

    @property
    def layers(self) -> int:
        """Attentions over video tokens in one forward of the (first) transformer."""
        return sum(1 for _ in self.adapter.attention_modules(self.transformer))


def open_model(config: GenerateConfig) -> Model:
    """A model's configs, as a pipeline that loads no weights.

    Raises:
        LVSAError: for a model that is not there, not known, or whose configs are broken; for a LoRA
            or a cache that is not for it.
    """
    source = find_model(config.model.model, config.model.revision)
    adapter = adapter_for(source.pipeline_class)
    wanted = _pipeline_class(config, source, adapter)
    if wanted != source.pipeline_class:
        logger.info("%s is loaded as %s, to start from %s", source.name, wanted, _given(config))
        source = replace(source, loaded_as=wanted)
    skeleton = skeleton_pipeline(source)
    _check_geometry(source, adapter, skeleton)
    check_tuning(config.tuning, skeleton)
    loras = check_loras(config.model.lora, skeleton, adapter.transformers(skeleton))
    distilled = distilled_lora(lora.source for lora, _ in loras)
    if distilled is not None:
        logger.info(
            "%s: %d steps, guidance %g, flow shift %g where no flag says otherwise",
            distilled.repository, distilled.steps, distilled.guidance, distilled.flow_shift,
        )  # fmt: skip
    defaults = defaults_for(source, adapter, skeleton)
    return Model(source, adapter, skeleton, defaults, loras, distilled)


def _given(config: GenerateConfig) -> str:
    return ", ".join(name for name in FILES if getattr(config.video, name)) or "a prompt alone"


def _pipeline_class(config: GenerateConfig, source: ModelSource, adapter: ModelAdapter) -> str:
    """The pipeline that serves what a video starts from."""
    given = [name for name in FILES if getattr(config.video, name)]
    return adapter.pipeline_class(source.index, given)


def make_job(
    config: GenerateConfig,
    world: int,
    device: torch.device,
    request: Request | None = None,
    model: Model | None = None,
) -> Job:
    """Checks a configuration against the model's configs.

    Args:
        config: the user's settings.
        world: ranks of the job.
        device: of this process; decides the automatic dtype.
        request: made of the same configuration by another rank, which read images and videos.
        model: opened for another video of the same job; opened here without it.

    Raises:
        LVSAError: for anything that cannot work; see `make_request`, `ModelAdapter.grid`.
    """
    model = model or open_model(config)
    source, adapter, skeleton = model.source, model.adapter, model.skeleton
    wanted = _pipeline_class(config, source, adapter)
    if wanted != source.pipeline_class:
        raise LVSAError(
            f"a video from {_given(config)} needs {wanted}, and the list begins with one that "
            f"{source.pipeline_class} makes; one list has one pipeline: give it a list of its own"
        )
    # Memory of a GPU that is asked about is a GPU's memory, wherever the plan is made.
    planned = device if config.processes.gpu_memory is None else torch.device("cuda")
    dtype = _dtype(config.model.dtype, planned, adapter.known_model(skeleton))
    transformer: Any = next(iter(adapter.transformers(skeleton).values()))
    head_dim = int(transformer.config.attention_head_dim)
    backend, dry_run = config.attention.backend, config.output.dry_run
    kernel = kernel_for(backend, device, dtype, head_dim, dry_run)
    if config.output.dry_run and config.processes.ranks is not None:
        world = config.processes.ranks
    mesh = mesh_sizes(
        world,
        replicas=config.processes.replicas,
        guidance_parallel=config.processes.guidance_parallel,
        ulysses=config.processes.ulysses,
    )
    check_heads(int(transformer.config.num_attention_heads), mesh.heads)
    if mesh.video > 1:
        check_shared_weights(config.tuning, source.pipeline_class)
    if request is None:
        asked = replace(config, sampling=with_lora(config.sampling, model.distilled))
        request = make_request(asked, skeleton, adapter, model.defaults, mesh.sequence)
    _check_guidance(mesh, request, adapter, skeleton)
    # Videos of one job share the model, and each may have a schedule of its own.
    skeleton = copy.copy(skeleton)
    request.sampling.set_on(skeleton)
    call_arguments(request, adapter, skeleton, first_rank=True)
    _check_steps(request.steps, skeleton.scheduler)
    check_profile(config.output.profile, request.steps)
    grid = adapter.grid(request.num_frames, request.height, request.width, skeleton)
    job = Job(
        config=config,
        source=source,
        adapter=adapter,
        skeleton=skeleton,
        request=request,
        grid=grid,
        pattern=reached(_pattern(config, adapter, skeleton, request, grid), request.steps),
        dtype=dtype,
        device=device,
        kernel=kernel,
        mesh=mesh,
    )
    check_sharing(job)
    if config.attention.riflex:
        check_riflex(adapter.transformers(skeleton), job.horizon, riflex_options(config))
    if config.processes.hardware is not None:
        find_hardware(config.processes.hardware)
    if not config.output.dry_run:
        # A dry run tells what would divide; anything else cannot go on.
        _ = job.shards
    return job


def _check_geometry(source: ModelSource, adapter: ModelAdapter, skeleton: Any) -> None:
    """Stops where a checkpoint's configs lack what the sequence and the steps follow from."""
    try:
        _ = adapter.size_multiples(skeleton), adapter.temporal_factor(skeleton)
        _ = skeleton.scheduler.config
    except LVSAError:
        raise
    except BROKEN_CONFIG as error:
        raise CheckpointError(
            f"--model {source.name}: its configs do not say how a video is made: {error}"
        ) from error


def _check_guidance(
    mesh: MeshSizes, request: Request, adapter: ModelAdapter, skeleton: Any
) -> None:
    """Stops for a guidance without two passes, where each has ranks of its own."""
    if mesh.guidance == 1:
        return
    if request.guidance <= 1:
        raise LVSAError(
            f"--guidance-parallel needs two passes, and --guidance {request.guidance:g} has one; "
            "give a guidance above 1, or leave it out"
        )
    adapter.check_guidance_parallel(skeleton)


def _check_steps(steps: int, scheduler: Any) -> None:
    """Stops for more denoising steps than the schedule was trained on; some fail only then."""
    most = getattr(scheduler.config, "num_train_timesteps", None)
    if most is not None and steps > most:
        raise LVSAError(f"--steps is {steps}; {type(scheduler).__name__} has {most} to give")


def _pattern(
    config: GenerateConfig, adapter: ModelAdapter, skeleton: Any, request: Request, grid: FrameGrid
) -> Pattern:
    if not config.attention.lvsa:
        return dense(grid.frames)
    settings = config.attention.settings
    if "last_image" in request.conditions:
        # Not every model that takes a last image shows it in its configs.
        frames = tuple({*settings.condition_latent_frames, grid.frames - 1})
        settings = replace(settings, condition_latent_frames=frames)
    return make_pattern(adapter, skeleton, grid, settings)


def reached(pattern: Pattern, steps: int) -> Pattern:
    """The pattern at the offsets that ``steps`` denoising steps come to, in the same order.

    A long video has hundreds of offsets, each a matrix of its own in every table.
    """
    if steps >= pattern.n_offsets:
        return pattern
    some = FrameMatrices(steps, pattern.frames, pattern.attended.__getitem__)
    return replace(pattern, attended=some)


def _dtype(name: str, device: torch.device, known: KnownModel | None) -> torch.dtype:
    if name == "auto":
        trained = known.defaults.dtype if known else Defaults.dtype
        name = "float32" if device.type == "cpu" else trained
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def riflex_options(config: GenerateConfig) -> RIFLExOptions:
    """RIFLEx as the flags ask for it."""
    return RIFLExOptions(config.attention.riflex_ratio, config.attention.riflex_k)
