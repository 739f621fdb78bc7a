"""LVSA on a diffusers pipeline in one call, with a process group or without."""

from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lvsa.adapters import adapter_for, get_adapter
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.grids import VideoGrids
from lvsa.adapters.install.guidance import GuidanceParallel
from lvsa.adapters.install.prepared import check_hooks, forget_compiled
from lvsa.adapters.install.replication import Replication
from lvsa.adapters.install.rope_patch import RIFLExOptions
from lvsa.adapters.install.session import LVSASession
from lvsa.adapters.install.sharded import check_gathering, encoders_are_sharded
from lvsa.adapters.install.watch import Watch
from lvsa.attention import LVSAttention
from lvsa.backends import Backend
from lvsa.comm import check_agreement, check_weights, group_size
from lvsa.cp_plans import ModelPlan
from lvsa.cp_plans.trial import meta_twin
from lvsa.errors import LVSAError
from lvsa.heads import check_heads
from lvsa.mesh import MeshSizes, VideoMesh
from lvsa.pattern import Pattern
from lvsa.processor import LVSAProcessor
from lvsa.settings import LVSASettings

__all__ = ["LVSASession", "default_mesh", "enable"]


def enable(
    pipe: Any,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    settings: LVSASettings | None = None,
    pattern: Pattern | None = None,
    exchange: str = "needed",
    backend: str | Backend = "auto",
    mesh: DeviceMesh | None = None,
    adapter: str | ModelAdapter | None = None,
    riflex: bool = False,
    riflex_ratio: float | None = None,
    riflex_k: int | None = None,
    replicate: bool = True,
) -> LVSASession:
    """Installs LVSA on a pipeline.

    Args:
        pipe: a diffusers pipeline of a family that an adapter serves.
        num_frames, height, width: frames and pixels of the videos, all three or none. With them
            everything is checked here, and a call for another size is refused. Without, each call
            may have its own length and size, which are read off it.
        settings: window and keyframes; the defaults without it.
        pattern: a pattern of your own in place of ``settings``, in latent frames.
        exchange: how keys and values travel: all_gather, ring or needed.
        backend: the attention kernel, by name or built by hand; auto picks it by device and dtype.
        mesh: the ranks that share a video, with dimensions named as in `lvsa.mesh`: guidance,
            frames, heads, or one of any name, which is frames. Without it: all ranks of the
            default process group as frames if there is one, else this process alone.
        adapter: name or instance; found from the pipeline's class without it.
        riflex: lower the temporal frequency that makes long videos repeat themselves, see
            `lvsa.riflex`; Wan, HunyuanVideo 1.5 and CogVideoX with rotary embeddings.
        riflex_ratio: the length that RIFLEx prepares for, as a multiple of the training length;
            that of the video without it.
        riflex_k: the temporal frequency that RIFLEx lowers, counted from 1; without it the one
            that its authors name for the model.
        replicate: whether one rank draws noise and encodes inputs for all. Without it, every rank
            must come to the same bits by itself, which is checked.

    Returns:
        A session; use it as a context manager or call its `remove`.

    Raises:
        LVSAError (a ValueError): for a size or length off the model's grid, a sequence or heads
            that do not divide among the ranks, guidance without two passes, a plan that does not
            fit, settings or weights that differ among ranks, RIFLEx on a model that it does not
            know, or a pipeline that has a session.
    """
    ranks = VideoMesh.of(mesh or default_mesh(pipe))
    group = ranks.video
    # Before anything that a rank might refuse alone, while the others wait for it.
    check_agreement(
        {
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "settings": settings,
            "pattern": None if pattern is None else pattern.identity,
            "adapter": adapter if isinstance(adapter, str | None) else type(adapter).__qualname__,
            "riflex": riflex,
            "riflex_ratio": riflex_ratio,
            "riflex_k": riflex_k,
            "replicate": replicate,
        },
        group,
        what="arguments of enable",
    )
    sizes = {"num_frames": num_frames, "height": height, "width": width}
    missing = [name for name, given in sizes.items() if given is None]
    if 0 < len(missing) < len(sizes):
        raise LVSAError(f"{' and '.join(missing)} missing: give all of {', '.join(sizes)} or none")
    if pattern is not None and settings is not None:
        raise LVSAError("give either settings or a pattern, not both")
    for name, value in {"riflex_ratio": riflex_ratio, "riflex_k": riflex_k}.items():
        if value is not None and not riflex:
            raise LVSAError(
                f"{name} is {value}, but RIFLEx is off; give riflex=True as well, or leave it out"
            )
    if not isinstance(adapter, ModelAdapter):
        adapter = get_adapter(adapter) if adapter else adapter_for(type(pipe))
    transformers = adapter.transformers(pipe)
    check_hooks(transformers, group_size(group))
    configs: list[Any] = [transformer.config for transformer in transformers.values()]
    for config in configs:
        check_heads(config.num_attention_heads, group_size(ranks.heads))
    if ranks.guidance is not None:
        adapter.check_guidance_parallel(pipe)
        if adapter.guidance_style == "calls":
            check_gathering(transformers, ranks.guidance)
    check_weights(transformers, group)
    device = device_of(pipe)
    attention = LVSAttention(
        group=ranks.frames, heads=ranks.heads, exchange=exchange, backend=backend, device=device
    )
    deciding = group
    if adapter.guidance_style == "calls":
        # A pass on ranks of its own has caches of its own; half of a batch has not.
        deciding = None if ranks.sequence is None else ranks.sequence.get_group()
    session = LVSASession(adapter, attention, transformers, group, deciding)
    try:
        session.hold(pipe)
        session.undo_later(partial(forget_compiled, transformers.values()))
        grids = VideoGrids(
            pipe,
            session,
            pattern=pattern or settings or LVSASettings(),
            # Copied while nothing is installed on the transformers yet.
            plans=_plans(pipe, session),
            riflex=RIFLExOptions(riflex_ratio, riflex_k) if riflex else None,
        )
        session.undo_later(grids.remove_riflex)
        if num_frames is not None and height is not None and width is not None:
            grids.pin(adapter.grid(num_frames, height, width, pipe))
        install(pipe, session, ranks)
        forget_compiled(transformers.values())
        Watch(pipe, session, grids)
        if replicate:
            methods, together = adapter.replicated_methods, encoders_are_sharded(pipe, transformers)
            session.undo_later(Replication(pipe, methods, group, device, together).remove)
    except BaseException:
        session.remove()
        raise
    return session


def _plans(pipe: Any, session: LVSASession) -> list[tuple[nn.Module, ModelPlan]]:
    """Weightless copies of the transformers that are cut, to try plans on, and the plans."""
    if session.attention.world == 1:
        return []
    return [
        (meta_twin(transformer), session.adapter.model_plan(pipe, transformer))
        for transformer in session.transformers.values()
    ]


def install(pipe: Any, session: LVSASession, ranks: VideoMesh) -> None:
    """Processors on the attention modules, plans on the transformers."""
    adapter, attention = session.adapter, session.attention
    for transformer in session.transformers.values():
        for _, module in adapter.attention_modules(transformer):
            session.undo_later(partial(module.set_processor, module.processor))
        if ranks.sequence is not None:
            plan = adapter.model_plan(pipe, transformer)
            applied = adapter.setup_context_parallel(
                transformer, attention.world, mesh=ranks.sequence, plan=plan
            )
            if applied is not None:
                session.undo_later(applied.remove)
    if ranks.guidance is not None:
        shared = GuidanceParallel(session.transformers, adapter.guidance_style, ranks.guidance)
        session.undo_later(shared.remove)
        session.clock.results.append(shared.check_complete)
        session.clock.listeners.append(shared.restart)
    adapter.patch_rotary_for_cp(attention.rank, attention.world)
    session.blocks = adapter.install_processor(
        pipe, LVSAProcessor(adapter, attention, session.masks)
    )


def default_mesh(pipe: Any) -> DeviceMesh | None:
    """All ranks of the default process group in one dimension; None for one process."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    return MeshSizes(frames=world).device_mesh(device_of(pipe).type)


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline's transformers run, whatever offloading keeps elsewhere meanwhile."""
    for name in ("_execution_device", "device"):
        if (device := getattr(pipe, name, None)) is not None:
            return torch.device(device)
    return torch.device("cpu")
