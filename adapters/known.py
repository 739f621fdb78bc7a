"""Published checkpoints as data: what they were trained on and how they are usually run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


def _always(pipe: Any) -> bool:
    return True


@dataclass(frozen=True)
class KnownModel:
    """One published checkpoint, or several that differ in nothing that counts here."""

    name: str
    """As its authors call it."""
    repository: str
    """On the model hub."""
    pipelines: tuple[str, ...]
    """Pipeline classes that load it."""
    horizon: int
    """Latent frames of its training videos."""
    defaults: Defaults
    fits: Callable[[Any], bool] = _always
    """Whether a pipeline of one of these classes is this checkpoint, by its configs."""


def recognize(models: tuple[KnownModel, ...], pipe: Any) -> KnownModel | None:
    """The first known model that a pipeline, or a skeleton of one, fits."""
    name = type(pipe).__name__
    for model in models:
        if name in model.pipelines and model.fits(pipe):
            return model
    return None
