"""LVSA on a diffusers pipeline in one call, with a process group or without."""

import logging
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lvsa.adapters import adapter_for, get_adapter
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.riflex import RIFLExPatch, apply_riflex
from lvsa.attention import LVSAttention
from lvsa.backends import Backend
from lvsa.clock import StepClock
from lvsa.comm import check_agreement, check_replicated
from lvsa.cp_plans.apply import AppliedPlan
from lvsa.errors import LVSAError
from lvsa.pattern import Pattern
from lvsa.processor import LVSAProcessor
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid

logger = logging.getLogger(__name__)


@dataclass
class LVSASession:
    """LVSA at work on a pipeline. Leaving its context, or `remove`, restores the pipeline."""

    adapter: ModelAdapter
    attention: LVSAttention
    clock: StepClock
    blocks: int
    plans: list[AppliedPlan] = field(default_factory=list)
    riflex: RIFLExPatch | None = None
    _originals: list[tuple[Any, Any]] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)

    def remove(self) -> None:
        """Gives the pipeline its own processors, forward methods and scheduler back."""
        for module, processor in self._originals:
            module.set_processor(processor)
        for plan in self.plans:
            plan.remove()
        for handle in self._handles:
            handle.remove()
        self.clock.detach()
        if self.riflex is not None:
            self.riflex.remove()
        self._originals, self.plans, self._handles = [], [], []

    def __enter__(self) -> "LVSASession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def enable(
    pipe: Any,
    *,
    num_frames: int,
    height: int,
    width: int,
    settings: LVSASettings | None = None,
    pattern: Pattern | None = None,
    exchange: str = "needed",
    backend: str | Backend = "sdpa",
    mesh: DeviceMesh | None = None,
    adapter: str | ModelAdapter | None = None,
    riflex: bool = False,
    riflex_ratio: float | None = None,
) -> LVSASession:
    """Installs LVSA on a pipeline for videos of one size and length.

    Args:
        pipe: a diffusers pipeline of a family that an adapter serves.
        num_frames, height, width: of the videos, in frames and pixels; pass the pipeline the same.
        settings: window and keyframes; the defaults without it.
        pattern: a pattern of your own in place of ``settings``, in latent frames.
        exchange: how keys and values travel: all_gather, ring or needed.
        backend: the attention kernel.
        mesh: one-dimensional mesh of the ranks that share a video. Without it: all ranks of the
            default process group if there is one, else this process alone.
        adapter: name or instance; found from the pipeline's class without it.
        riflex: lower the temporal frequency that makes long videos repeat themselves, see
            `lvsa.riflex`; Wan and HunyuanVideo 1.5.
        riflex_ratio: the length that RIFLEx prepares for, as a multiple of the training length;
            that of the video without it.

    Returns:
        A session; use it as a context manager or call its `remove`.

    Raises:
        LVSAError (a ValueError): for a size or length off the model's grid, a sequence that does
            not divide among the ranks, a plan that does not fit, settings that differ among ranks,
            RIFLEx on a model that it does not know.
    """
    if adapter is None:
        adapter = adapter_for(type(pipe))
    elif isinstance(adapter, str):
        adapter = get_adapter(adapter)
    if pattern is not None and settings is not None:
        raise LVSAError("give either settings or a pattern, not both")
    if riflex_ratio is not None and not riflex:
        raise LVSAError(
            f"riflex_ratio is {riflex_ratio}, but RIFLEx is off; give riflex=True as well, or no "
            "ratio"
        )
    grid = adapter.grid(num_frames, height, width, pipe)
    if pattern is None:
        pattern = make_pattern(adapter, pipe, grid, settings or LVSASettings())
    mesh = mesh or default_mesh(pipe)
    group = None if mesh is None else mesh.get_group()
    attention = LVSAttention(
        pattern, grid, group=group, exchange=exchange, backend=backend, device=device_of(pipe)
    )
    check_agreement({"riflex": riflex, "riflex_ratio": riflex_ratio}, group, what="RIFLEx settings")
    transformers = adapter.transformers(pipe)
    session = LVSASession(adapter, attention, StepClock(lambda s: setattr(attention, "step", s)), 0)
    try:
        if riflex:
            horizon = adapter.training_horizon(pipe)
            session.riflex = apply_riflex(transformers, grid.frames, horizon, riflex_ratio)
        for transformer in transformers.values():
            session._originals += [
                (module, module.processor) for _, module in adapter.attention_modules(transformer)
            ]
            if mesh is not None:
                applied = adapter.setup_context_parallel(
                    transformer,
                    attention.world,
                    grid=grid,
                    mesh=mesh,
                    plan=adapter.model_plan(pipe, transformer),
                )
                session.plans += [applied] if applied else []
            session._handles.append(_watch(pipe, transformer, session))
        adapter.patch_rotary_for_cp(attention.rank, attention.world)
        session.blocks = adapter.install_processor(pipe, LVSAProcessor(adapter, attention))
    except BaseException:
        session.remove()
        raise
    return session


def make_pattern(
    adapter: ModelAdapter, pipe: Any, grid: FrameGrid, settings: LVSASettings
) -> Pattern:
    """The pattern that settings make for one pipeline; its conditioning frames are anchors."""
    implied = adapter.condition_frames(pipe, grid.frames)
    anchors = tuple(sorted({*settings.condition_latent_frames, *implied}))
    settings = replace(settings, condition_latent_frames=anchors)
    return settings.pattern(
        grid.frames, adapter.temporal_factor(pipe), adapter.training_horizon(pipe)
    )


def default_mesh(pipe: Any) -> DeviceMesh | None:
    """All ranks of the default process group in one dimension; None where there is none."""
    if not dist.is_initialized():
        return None
    return init_device_mesh(device_of(pipe).type, (dist.get_world_size(),), mesh_dim_names=("cp",))


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline's transformers run; the CPU for one that does not say."""
    return torch.device(getattr(pipe, "device", "cpu"))


def _check_processors(session: LVSASession, transformer: nn.Module) -> None:
    """LVSA must still be where it was put: another processor would run dense, and in silence.

    One of the user's own may stand in its place if it holds this session's engine.
    """
    for path, attention in session.adapter.attention_modules(transformer):
        if not any(held is session.attention for held in vars(attention.processor).values()):
            raise LVSAError(
                f"{path} has a {type(attention.processor).__name__} in place of LVSA's: processors "
                "were set, or projections fused, after LVSA was enabled. Do that first"
            )


def _watch(pipe: Any, transformer: nn.Module, session: LVSASession) -> Any:
    """Follows the pipeline's scheduler, and holds the ranks' inputs against one another.

    Once a generation, before anything is cut: ranks that drew different noise, or encoded the
    prompt to different bits, would each denoise its part of another video.
    """
    checked = -1

    def before_forward(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal checked
        session.clock.attach(pipe.scheduler)
        if checked != session.clock.generations:
            checked = session.clock.generations
            _check_processors(session, module)
            given = {**{f"argument {i}": x for i, x in enumerate(args)}, **kwargs}
            tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
            check_replicated(tensors, session.attention.group)

    session.clock.attach(pipe.scheduler)
    return transformer.register_forward_pre_hook(before_forward, with_kwargs=True)
