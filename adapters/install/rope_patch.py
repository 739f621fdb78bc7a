"""RIFLEx on a pipeline: its rotary tables get one temporal frequency lowered, and back again."""

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lvsa.adapters.install.ropes import ROPES, Component, TemporalRope
from lvsa.errors import LVSAError
from lvsa.riflex import (
    adjusted_frequencies,
    check_component,
    exceeded,
    periods,
    temporal_frequencies,
)
from lvsa.settings import joined

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RIFLExOptions:
    """RIFLEx as the user asked for it.

    Args:
        ratio: length to prepare for, as a multiple of the training length; None for the video's.
        k: component to lower, counted from 1; None for the one that the authors name.
    """

    ratio: float | None = None
    k: int | None = None


class Target(NamedTuple):
    """A module whose rotary embedding RIFLEx would change, its kind, and component k."""

    rope: Any
    kind: TemporalRope
    k: int

    @property
    def frequencies(self) -> Tensor:
        """θ_j of the temporal axis: ``[dim/2]``."""
        return temporal_frequencies(*self.kind.axis(self.rope))


@dataclass
class RIFLExPatch:
    """RIFLEx at work on a pipeline. `remove` gives its rotary modules their own tables back."""

    test_frames: float
    """Latent frames that the lowered frequency is made for."""
    components: dict[str, Component] = field(default_factory=dict)
    """What changed, by attribute name of the transformer."""
    targets: dict[str, Target] = field(default_factory=dict, repr=False)
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def arguments(self, transformer: nn.Module, given: dict[str, Any], frames: int) -> Any:
        """A forward's keyword arguments, with lowered tables where a model is given its tables.

        Args:
            given: keyword arguments; ``image_rotary_emb`` is ``cos, sin: [S, D]``.
            frames: of tokens.
        """
        for name, component in self.components.items():
            tables = given.get("image_rotary_emb")
            if self.targets[name].rope is transformer and tables is not None:
                tables = tuple(table.clone() for table in tables)
                component.lower(tables, frames)
                return {**given, "image_rotary_emb": tables}
        return given

    def remove(self) -> None:
        """Restores every module bit for bit; a second call does nothing."""
        self._undo.close()
        self.components.clear()


def check_riflex(
    transformers: Mapping[str, nn.Module], horizon: int, options: RIFLExOptions
) -> dict[str, Target]:
    """What RIFLEx would change.

    Args:
        transformers, horizon, options: as for `apply_riflex`.

    Raises:
        LVSAError: see `apply_riflex`.
    """
    ratio = options.ratio
    if ratio is not None and not (ratio > 0 and math.isfinite(ratio)):
        raise LVSAError(
            f"riflex_ratio is {ratio}; it must be a positive number, the video's length as a "
            f"multiple of the training length: 2 for {2 * horizon} latent frames"
        )
    return {name: _target(name, model, options.k) for name, model in transformers.items()}


def without_change(
    targets: Mapping[str, Target], frames: int, horizon: int, options: RIFLExOptions
) -> str | None:
    """Why RIFLEx changes nothing in a video of so many latent frames; None where it does."""
    test_frames = _test_frames(frames, horizon, options)
    if test_frames <= horizon:
        return (
            f"{test_frames:g} latent frames are no longer than the {horizon} that the model was "
            "trained on"
        )
    still = {
        name: t for name, t in targets.items() if t.k not in exceeded(t.frequencies, test_frames)
    }
    if len(still) < len(targets):
        return None
    target = next(iter(still.values()))
    every = periods(target.frequencies).tolist()
    others = [
        f"{j} (period {every[j - 1]:.0f})"
        for j in exceeded(target.frequencies, test_frames)
        if every[j - 1] > horizon
    ]
    return (
        f"component {target.k} comes back after {every[target.k - 1]:.0f} latent frames, and the "
        f"video has {test_frames:g}"
        + (f"; with riflex_k it would lower {' or '.join(others)}" if others else "")
    )


def apply_riflex(
    transformers: Mapping[str, nn.Module],
    frames: int,
    horizon: int,
    options: RIFLExOptions | None = None,
) -> RIFLExPatch:
    """Lowers the intrinsic temporal frequency of a pipeline's transformers.

    Where nothing needs lowering, one warning says why, and nothing is changed.

    Args:
        transformers: by attribute name, as `ModelAdapter.transformers` gives them.
        frames: latent frames of the video.
        horizon: latent frames that the model was trained on.
        options: the length to prepare for and the component, where the user chose them.

    Raises:
        LVSAError: for a ratio that is not a positive number, a component that there is not, a
            transformer without a rotary embedding that RIFLEx knows, one for which no component is
            known, or one that is patched already.
    """
    options = options or RIFLExOptions()
    targets = check_riflex(transformers, horizon, options)
    patch = RIFLExPatch(_test_frames(frames, horizon, options), targets=targets)
    reason = without_change(targets, frames, horizon, options)
    if reason is not None:
        logger.warning("RIFLEx has no effect: %s", reason)
        return patch
    for name, target in targets.items():
        old, k = target.frequencies, target.k
        new = adjusted_frequencies(old, k, patch.test_frames)
        component = Component(k, float(old[k - 1]), float(new[k - 1]))
        if component.new == component.old:
            continue
        patch.components[name] = component
        patch._undo.callback(target.kind.patch(target.rope, component))
        target.rope._riflex = True
        patch._undo.callback(delattr, target.rope, "_riflex")
        before, after = periods(torch.stack([old[k - 1], new[k - 1]])).tolist()
        logger.info(
            "[RIFLEx] %s: period of component %d is %.1f latent frames, was %.1f",
            *(name, k, after, before),
        )
    return patch


def _test_frames(frames: int, horizon: int, options: RIFLExOptions) -> float:
    """L_test, latent frames."""
    return frames if options.ratio is None else options.ratio * horizon


def _target(name: str, transformer: Any, k: int | None) -> Target:
    rope = getattr(transformer, "rope", None)
    kind = ROPES.get(type(rope).__name__)
    if kind is None:
        rope, kind = transformer, ROPES.get(type(transformer).__name__)
    if kind is None or not getattr(transformer.config, "use_rotary_positional_embeddings", True):
        raise LVSAError(
            f"RIFLEx knows no temporal rotary embedding in {name} ({type(transformer).__name__}); "
            f"it works on models with {' or '.join(ROPES)}. Leave riflex out for this model"
        )
    if getattr(rope, "_riflex", False):
        raise LVSAError(f"RIFLEx is at work on {name} already; remove it before it is set up anew")
    frequencies = temporal_frequencies(*kind.axis(rope))
    if k is None and (k := kind.known(rope)) is None:
        shown = joined([f"{n:.3g}" for n in periods(frequencies).tolist()], 8)
        raise LVSAError(
            f"which component RIFLEx should lower is known of no model with a temporal rotary "
            f"embedding like that of {name} ({type(transformer).__name__}); give riflex_k, 1 to "
            f"{len(frequencies)}. Periods of the components in latent frames: {shown}"
        )
    check_component(frequencies, k)
    return Target(rope, kind, k)
