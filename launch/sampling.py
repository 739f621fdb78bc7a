"""How a video is denoised: scheduler, shift, guidance and the two transformers of Wan 2.2.

As the authors published it, whatever a checkpoint's scheduler file happens to say, unless the user
says otherwise. A checkpoint that is none of the known ones keeps its own.
"""

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any

import diffusers

from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.checkpoints.loras import DistilledLora
from lvsa.errors import LVSAError
from lvsa.launch.config import SamplingConfig
from lvsa.settings import flag

OWN = "own"
"""Name of the scheduler that lies beside the checkpoint, as it is."""
# What schedulers of diffusers call the shift of flow matching.
SHIFTS = ("flow_shift", "shift")
# Entries of a config that make a scheduler one of flow matching.
FLOW_MATCHING = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@dataclass(frozen=True)
class Sampling:
    """How a video is denoised, with nothing left open.

    Args:
        scheduler: class of the scheduler; None for that of the checkpoint.
        flow_shift: shift of the noise levels of flow matching; None for that of the scheduler.
        timestep_spacing: entry of the scheduler's config; None leaves it.
        boundary: noise level, 0 to 1, below which the second transformer takes over; None where
            the checkpoint's own holds, or it has one transformer.
        guidance_2: scale of guidance of the second transformer; None for that of the first.
        dynamic_guidance: whether the scale of guidance changes from step to step.
        source: where the model's authors say so; None where nothing of it is theirs.
    """

    scheduler: str | None = None
    flow_shift: float | None = None
    timestep_spacing: str | None = None
    boundary: float | None = None
    guidance_2: float | None = None
    dynamic_guidance: bool = False
    source: str | None = None

    def set_on(self, pipe: Any) -> None:
        """Gives a pipeline, or a skeleton of one, this scheduler and boundary.

        Where they are the pipeline's own, nothing is touched; a second call changes nothing.
        """
        pipe.scheduler = scheduler_for(self, pipe.scheduler)
        if self.boundary is not None:
            pipe.register_to_config(boundary_ratio=self.boundary)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        arguments: dict[str, Any] = {}
        if self.guidance_2 is not None:
            arguments["guidance_scale_2"] = self.guidance_2
        if self.dynamic_guidance:
            arguments["use_dynamic_cfg"] = True
        return arguments


def with_lora(config: SamplingConfig, lora: DistilledLora | None) -> SamplingConfig:
    """Settings with those that a distilled LoRA is sampled with, where the user left them open."""
    if lora is None:
        return config
    published: dict[str, Any] = {"steps": lora.steps, "guidance": lora.guidance}
    if config.scheduler != OWN:
        published["flow_shift"] = lora.flow_shift
    still_open = {n: value for n, value in published.items() if getattr(config, n) is None}
    return replace(config, **still_open)


def settle(
    config: SamplingConfig,
    pipe: Any,
    adapter: ModelAdapter,
    size: tuple[int, int],
) -> Sampling:
    """What the user asked for, else what was published for a video of this size.

    Args:
        config: the user's settings.
        pipe: the pipeline, or a skeleton of it.
        adapter: of the model.
        size: height and width, pixels.

    Raises:
        LVSAError: for a scheduler that does not exist, or does not fit the pipeline.
    """
    check_scheduler(config.scheduler, pipe, adapter)
    known = adapter.known_model(pipe)
    published = known.defaults if known else None
    two = has_two_transformers(pipe)
    scheduler: str | None = None
    if config.scheduler not in (None, OWN):
        scheduler = config.scheduler
    shift, spacing, dynamic, source = config.flow_shift, None, False, None
    guidance_2, boundary = config.guidance_2, config.boundary
    if published is not None:
        source = published.source
        if config.scheduler != OWN:
            scheduler = scheduler or published.scheduler
            spacing = published.timestep_spacing
            dynamic = published.dynamic_guidance and scheduler == published.scheduler
            shift = published.shift(*size) if shift is None else shift
        if guidance_2 is None and config.guidance is None:
            guidance_2 = published.guidance_2
        boundary = published.boundary if boundary is None else boundary
    return Sampling(
        scheduler=scheduler,
        flow_shift=shift,
        timestep_spacing=spacing,
        boundary=boundary if two else None,
        guidance_2=guidance_2 if two else None,
        dynamic_guidance=dynamic,
        source=source,
    )


def check_scheduler(name: str | None, pipe: Any, adapter: ModelAdapter) -> None:
    """Stops for a scheduler that the pipeline does not work with; names those that it does."""
    if name in (None, OWN, *adapter.schedulers):
        return
    own = type(pipe.scheduler).__name__
    raise LVSAError(
        f"--scheduler is {name}; {type(pipe).__name__} works with "
        f"{', '.join(adapter.schedulers)}, or {OWN}: the checkpoint's {own} as it is"
    )


def has_two_transformers(pipe: Any) -> bool:
    """Whether one transformer denoises at high noise and another at low noise."""
    return all(getattr(pipe, name, None) is not None for name in ("transformer", "transformer_2"))


def scheduler_for(sampling: Sampling, current: Any) -> Any:
    """The scheduler that a video is denoised with: the current one, or another in its place."""
    wanted = sampling.scheduler or type(current).__name__
    same = type(current).__name__ == wanted
    cls = type(current) if same else getattr(diffusers, wanted)
    accepted = inspect.signature(cls).parameters
    entries: dict[str, Any] = {}
    shift = shift_of(current) if sampling.flow_shift is None and not same else sampling.flow_shift
    if shift is not None:
        entries |= {name: shift for name in SHIFTS if name in accepted}
    if entries and getattr(current.config, "use_dynamic_shifting", False):
        # One that follows the size of the picture would not look at it.
        entries["use_dynamic_shifting"] = False
    if sampling.timestep_spacing is not None and "timestep_spacing" in accepted:
        entries["timestep_spacing"] = sampling.timestep_spacing
    if same and all(getattr(current.config, name) == value for name, value in entries.items()):
        return current
    if not same and shift_of(current) is not None:
        # Of another family of schedulers, whose configs have no more than this in common.
        entries |= {name: value for name, value in FLOW_MATCHING.items() if name in accepted}
        return cls(num_train_timesteps=current.config.num_train_timesteps, **entries)
    return cls.from_config(current.config, **entries)


def shift_of(scheduler: Any) -> float | None:
    """Shift of a scheduler of flow matching; None for one of another kind."""
    config = scheduler.config
    if getattr(config, "prediction_type", "flow_prediction") != "flow_prediction":
        return None
    return next((float(config[name]) for name in SHIFTS if name in config), None)


def steps_of_transformers(pipe: Any, steps: int) -> tuple[int, int] | None:
    """Denoising steps of the high-noise and the low-noise transformer; None where there is one.

    Args:
        pipe: with the scheduler and the boundary that a video is denoised with.
        steps: of the video.
    """
    boundary = getattr(pipe.config, "boundary_ratio", None)
    if not has_two_transformers(pipe) or boundary is None:
        return None
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    high = int((scheduler.timesteps >= boundary * scheduler.config.num_train_timesteps).sum())
    return high, len(scheduler.timesteps) - high


def described(pipe: Any, sampling: Sampling, guidance: float, steps: int) -> str:
    """The sampling of a video in a line, for the plan."""
    shift = shift_of(pipe.scheduler)
    parts = [type(pipe.scheduler).__name__]
    if shift is not None:
        parts[0] += f", flow shift {shift:g}"
    split = steps_of_transformers(pipe, steps)
    if split is not None:
        second = guidance if sampling.guidance_2 is None else sampling.guidance_2
        parts.append(
            f"{split[0]} steps of the high-noise transformer (guidance {guidance:g}), {split[1]} "
            f"of the low-noise one ({second:g}); boundary {pipe.config.boundary_ratio:g}"
        )
    if sampling.dynamic_guidance:
        parts.append("dynamic guidance")
    return "; ".join(parts)


def without_effect(
    config: SamplingConfig, pipe: Any, guidance: float, steps: int
) -> list[tuple[bool, str]]:
    """Settings of sampling, whether each was given for nothing, and why.

    Args:
        config: the user's settings.
        pipe: with the scheduler and the boundary that a video is denoised with.
        guidance, steps: of the video.
    """
    one = not has_two_transformers(pipe)
    split = steps_of_transformers(pipe, steps)
    scheduler = type(pipe.scheduler).__name__
    return [
        (
            config.flow_shift is not None and shift_of(pipe.scheduler) is None,
            f"{flag('flow_shift')}: {scheduler} has no shift of flow matching",
        ),
        *[
            (
                getattr(config, name) is not None and one,
                f"{flag(name)}: this model has one transformer",
            )
            for name in ("guidance_2", "boundary")
        ],
        (
            config.guidance_2 is not None and not one and guidance <= 1,
            f"{flag('guidance_2')}: --guidance is {guidance:g}, which switches both off",
        ),
        (
            split is not None and 0 in split,
            f"{flag('boundary')}: all {steps} steps are on one side of it, so one of the two "
            "transformers never runs",
        ),
    ]


def scheduler_facts(pipe: Any) -> dict[str, Any]:
    """Class and config of the scheduler that a video was denoised with, for its record."""
    config = {
        # JSON has no infinity, which some schedulers take for "no limit".
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in pipe.scheduler.config.items()
        if not name.startswith("_")
    }
    return {"class": type(pipe.scheduler).__name__, "config": config}
