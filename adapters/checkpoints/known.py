"""One published checkpoint as data: what it was trained on, how it is usually run, how it is known.

Nothing here imports torch: tables of models are printed in a moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

# Half way between the sizes for which Wan's authors give a shift each, 480 × 832 and 720 × 1280.
SMALL_AREA = (480 * 832 * 720 * 1280) ** 0.5


@dataclass(frozen=True)
class Defaults:
    """What a generation takes where the user says nothing."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    num_frames: int
    """Video frames."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Scale of classifier-free guidance."""
    fps: int
    """Video frames per second."""
    flow_shift: float | None = None
    """Shift of the noise levels of flow matching; None leaves that of the scheduler's file."""
    flow_shift_480p: float | None = None
    """The same for a small video, nearer to 480 × 832 pixels than to 720 × 1280."""
    guidance_2: float | None = None
    """Scale of guidance of the low-noise transformer, of models with two."""
    boundary: float | None = None
    """Noise level, 0 to 1, below which the low-noise transformer takes over, of models with two."""
    scheduler: str | None = None
    """Class of the scheduler; None for that of the checkpoint."""
    timestep_spacing: str | None = None
    """Entry of the scheduler's config; None leaves it."""
    dynamic_guidance: bool = False
    """Whether the scale of guidance changes from step to step (CogVideoX, with that scheduler)."""
    dtype: str = "bfloat16"
    """Number format of the transformer's weights on an accelerator."""
    frames_multiple: int | None = None
    """The authors' lengths are this multiple of a whole number, plus 1, video frames."""
    negative_prompt: str | None = None
    """Where the authors' negative prompt is to be found, if they recommend one."""
    source: str | None = None
    """Where the authors say so."""

    def shift(self, height: int, width: int) -> float | None:
        """Flow shift of a video of this size in pixels."""
        small = self.flow_shift_480p is not None and height * width < SMALL_AREA
        return self.flow_shift_480p if small else self.flow_shift


class Presence(Enum):
    """What a config says of a component or an entry whose value does not matter."""

    ABSENT = "absent"
    """None, or not there at all."""
    GIVEN = "given"
    """Anything but None."""


ABSENT, GIVEN = Presence.ABSENT, Presence.GIVEN

Configs = Mapping[str, Presence | Mapping[str, Any]]
"""Component of the pipeline → whether it is there, or entries of its config and their values."""


@dataclass(frozen=True)
class KnownModel:
    """One checkpoint, or several that differ in nothing that counts here."""

    name: str
    """As its authors call it."""
    repository: str | None
    """Id on the model hub; None for a model that comes along, in the folder assets/<name>."""
    pipelines: tuple[str, ...]
    """Pipeline classes that load it."""
    horizon: int
    """Latent frames of its training videos."""
    defaults: Defaults
    configs: Configs
    """What the configs of its components say; the first checkpoint that matches is taken."""

    def fits(self, pipe: Any) -> bool:
        """Whether a pipeline, or a skeleton of one, has this checkpoint's class and configs."""
        return type(pipe).__name__ in self.pipelines and all(
            _fits(wanted, getattr(pipe, component, None))
            for component, wanted in self.configs.items()
        )


def _fits(wanted: Presence | Mapping[str, Any], component: Any) -> bool:
    if isinstance(wanted, Presence) or component is None:
        return _matches(wanted, component)
    return all(
        _matches(value, getattr(component.config, entry, None)) for entry, value in wanted.items()
    )


def _matches(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Presence):
        return (value is None) == (wanted is ABSENT)
    return bool(wanted == value)


def recognize(models: Iterable[KnownModel], pipe: Any) -> KnownModel | None:
    """The checkpoint that a pipeline, or a skeleton of one, was loaded from.

    Of several with the same configs it is the one that the pipeline's hub id names, or else the
    first.

    Returns:
        None for a checkpoint that is none of these.
    """
    fitting = [model for model in models if model.fits(pipe)]
    if not fitting:
        return None
    same = [model for model in fitting if model.configs == fitting[0].configs]
    origin = getattr(pipe, "name_or_path", None)
    return next((model for model in same if model.repository == (origin or "")), same[0])
