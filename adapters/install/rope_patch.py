"""RIFLEx on a pipeline: its rotary modules get one temporal frequency lowered, and back again."""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvsa.errors import LVSAError
from lvsa.riflex import adjusted_frequencies, intrinsic_index, periods, temporal_frequencies
from lvsa.wrapping import Undo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Component:
    """The one frequency that changes.

    Args:
        k: which, counted from 1.
        old, new: radians per latent frame.
    """

    k: int
    old: float
    new: float

    @property
    def columns(self) -> slice:
        """Of a table that holds each frequency twice, side by side, the temporal axis first."""
        return slice(2 * (self.k - 1), 2 * self.k)


@dataclass(frozen=True)
class TemporalRope:
    """What RIFLEx needs to know of one kind of rotary module.

    Args:
        axis: (dimensions, base) of a module's temporal axis.
        repetition_frames: latent frames after which its models' videos repeat themselves; picks
            the component that the RIFLEx authors name for them.
        patch: lowers a component in a module and returns what takes that back.
    """

    axis: Callable[[Any], tuple[int, float]]
    repetition_frames: int
    patch: Callable[[Any, Component], Undo]

    def component(self, rope: Any, test_frames: float) -> Component:
        """The intrinsic component for a video of so many latent frames."""
        frequencies = temporal_frequencies(*self.axis(rope))
        k = intrinsic_index(frequencies, self.repetition_frames)
        new = adjusted_frequencies(frequencies, k, test_frames)
        return Component(k, float(frequencies[k - 1]), float(new[k - 1]))


def _patch_tables(rope: Any, component: Component) -> Undo:
    """Wan keeps tables ``freqs_cos, freqs_sin: [positions, D]`` as buffers: they are exchanged."""
    originals = {name: getattr(rope, name) for name in ("freqs_cos", "freqs_sin")}
    for (name, table), wave in zip(originals.items(), (torch.cos, torch.sin), strict=True):
        changed = table.clone()
        angles = torch.arange(table.shape[0], dtype=torch.float64) * component.new
        changed[:, component.columns] = wave(angles)[:, None].to(table)
        setattr(rope, name, changed)

    def undo() -> None:
        for name, table in originals.items():
            # The pipeline may have moved to another device meanwhile.
            setattr(rope, name, table.to(getattr(rope, name).device))

    return undo


def _patch_outputs(rope: Any, component: Component) -> Undo:
    """HunyuanVideo 1.5 makes ``cos, sin: [S, D]`` in each forward: a hook goes over them."""

    def lower(module: Any, args: Any, kwargs: Any, output: tuple[Tensor, Tensor]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        _, _, latent_frames, height, width = hidden.shape
        frames = latent_frames // module.patch_size_t
        per_frame = (height // module.patch_size) * (width // module.patch_size)
        for table, wave in zip(output, (torch.cos, torch.sin), strict=True):
            if table.shape[0] != frames * per_frame:
                raise LVSAError(
                    f"RIFLEx met a rotary table of {table.shape[0]} positions; a video of {frames} "
                    f"latent frames × {per_frame} tokens has {frames * per_frame}. A plan must not "
                    f"cut the outputs of {type(module).__name__}"
                )
            angles = torch.arange(frames, dtype=torch.float32, device=table.device) * component.new
            table[:, component.columns] = wave(angles).repeat_interleave(per_frame)[:, None]

    return rope.register_forward_hook(lower, with_kwargs=True).remove


# By class of `transformer.rope`. The authors' choices (https://github.com/thu-ml/RIFLEx): k = 6 for
# Wan, whose component 6 has a period of 51 latent frames, and k = 4 (50 frames) for HunyuanVideo,
# whose temporal axis and training length HunyuanVideo 1.5 has kept.
ROPES: dict[str, TemporalRope] = {
    "WanRotaryPosEmbed": TemporalRope(lambda rope: (rope.t_dim, 10000.0), 51, _patch_tables),
    "HunyuanVideo15RotaryPosEmbed": TemporalRope(
        lambda rope: (rope.rope_dim[0], rope.theta), 50, _patch_outputs
    ),
}


@dataclass
class RIFLExPatch:
    """RIFLEx at work on a pipeline. `remove` gives its rotary modules their own tables back."""

    test_frames: float
    """Latent frames that the lowered frequency is made for."""
    components: dict[str, Component] = field(default_factory=dict)
    """What changed, by attribute name of the transformer."""
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def remove(self) -> None:
        """Restores every module bit for bit; a second call does nothing."""
        self._undo.close()


def check_riflex(
    transformers: Mapping[str, nn.Module], horizon: int, ratio: float | None
) -> dict[str, tuple[Any, TemporalRope]]:
    """Rotary modules that RIFLEx would change, and their kinds.

    Args:
        transformers, horizon, ratio: as for `apply_riflex`.

    Raises:
        LVSAError: see `apply_riflex`.
    """
    if ratio is not None and not (ratio > 0 and math.isfinite(ratio)):
        raise LVSAError(
            f"riflex_ratio is {ratio}; it must be a positive number, the video's length as a "
            f"multiple of the training length: 2 for {2 * horizon} latent frames"
        )
    return {name: _rope_of(name, transformer) for name, transformer in transformers.items()}


def apply_riflex(
    transformers: Mapping[str, nn.Module], frames: int, horizon: int, ratio: float | None = None
) -> RIFLExPatch:
    """Lowers the intrinsic temporal frequency of a pipeline's transformers.

    Where nothing needs lowering, one warning says why, and nothing is changed.

    Args:
        transformers: by attribute name, as `ModelAdapter.transformers` gives them.
        frames: latent frames of the video.
        horizon: latent frames that the model was trained on.
        ratio: L_test as a multiple of the horizon; ``frames / horizon`` without it.

    Raises:
        LVSAError: for a ratio that is not a positive number, a transformer without a rotary
            module that RIFLEx knows, or one that is patched already.
    """
    ropes = check_riflex(transformers, horizon, ratio)
    patch = RIFLExPatch(frames if ratio is None else ratio * horizon)
    if patch.test_frames <= horizon:
        logger.warning(
            "RIFLEx has no effect: %g latent frames are no longer than the %d that the model was "
            "trained on",
            patch.test_frames,
            horizon,
        )
        return patch
    for name, (rope, kind) in ropes.items():
        component = kind.component(rope, patch.test_frames)
        if component.new == component.old:
            continue
        patch.components[name] = component
        patch._undo.callback(kind.patch(rope, component))
        rope._riflex = True
        patch._undo.callback(delattr, rope, "_riflex")
    if patch.components:
        for name, component in patch.components.items():
            before, after = periods(torch.tensor([component.old, component.new])).tolist()
            logger.info(
                "[RIFLEx] %s: period of component %d is %.1f latent frames, was %.1f",
                *(name, component.k, after, before),
            )
    else:
        logger.warning(
            "RIFLEx has no effect: the model's videos do not repeat themselves within %g latent "
            "frames",
            patch.test_frames,
        )
    return patch


def _rope_of(name: str, transformer: nn.Module) -> tuple[Any, TemporalRope]:
    rope = getattr(transformer, "rope", None)
    kind = ROPES.get(type(rope).__name__)
    if kind is None:
        raise LVSAError(
            f"RIFLEx knows no temporal rotary embedding in {name} ({type(transformer).__name__}); "
            f"it works on models with {' or '.join(ROPES)}. Leave riflex out for this model"
        )
    if getattr(rope, "_riflex", False):
        raise LVSAError(f"RIFLEx is at work on {name} already; remove it before it is set up anew")
    return rope, kind
