"""LVSA's settings as users give them, and the pattern that they make.

Users count in video frames; the pattern counts in latent frames, which are ``temporal_factor``
video frames each. Whatever is lost on the way is said, never dropped in silence.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields

from lvsa.errors import LVSAError
from lvsa.keyframes import PLACEMENTS, PatternOptions, Placement
from lvsa.pattern import Pattern

logger = logging.getLogger(__name__)

# In video frames, as published.
WINDOW_SIZE = 12
N_FIRST_FRAMES = 4


@dataclass(frozen=True)
class LVSASettings:
    """Which frames attend which. Frames are video frames unless a name says latent."""

    rotate_keyframes: bool = False
    """Move the keyframes on by one latent frame each denoising step."""
    key_frame_interval: int | None = None
    """A fixed distance between keyframes, in video frames (16 is customary). Default: automatic, so
    that each frame attends about as many frames as the model was trained on (--auto-keyframes)."""
    window_size: int | None = None
    """Half-width of the local window, in video frames to either side. Default: 12, rounded up to
    whole latent frames."""
    n_first_frames: int | None = None
    """Leading frames that every frame attends, in video frames. Default: 4, rounded up to whole
    latent frames."""
    sparsity_scale: float = 1.0
    """Attended frames as a multiple of the training horizon, for the automatic interval."""
    horizon: int | None = None
    """Training horizon in latent frames, for the automatic interval. Default: the model's own."""
    keyframe_placement: Placement = "published"
    """How keyframes are spread: 'published' at an interval, 'even' so that the budget is met."""
    condition_latent_frames: tuple[int, ...] = ()
    """Latent frames with conditioning images or video, attended by every frame."""

    @property
    def automatic(self) -> bool:
        """Whether the keyframe interval comes from the training horizon."""
        return self.key_frame_interval is None

    def pattern(self, frames: int, temporal_factor: int, horizon: int) -> Pattern:
        """The pattern of a video of ``frames`` latent frames.

        Args:
            frames: T, latent frames.
            temporal_factor: video frames per latent frame.
            horizon: the model's training horizon, latent frames.

        Raises:
            LVSAError: for a setting out of range, or one that is less than a latent frame.
        """
        to_latent = LatentFrames(temporal_factor)
        window = to_latent("window size", self.window_size, smallest=0, default=WINDOW_SIZE)
        n_first = to_latent(
            "number of first frames", self.n_first_frames, smallest=0, default=N_FIRST_FRAMES
        )
        make = PLACEMENTS.get(self.keyframe_placement)
        if make is None:
            raise LVSAError(
                f"unknown keyframe placement {self.keyframe_placement!r}; "
                f"known: {', '.join(PLACEMENTS)}"
            )
        options: PatternOptions = {
            "window": window,
            "n_first": n_first,
            "scale": self.sparsity_scale,
            "rotate": self.rotate_keyframes,
            "condition_frames": self.condition_latent_frames,
        }
        if self.key_frame_interval is None:
            options["horizon"] = horizon if self.horizon is None else self.horizon
        else:
            options["interval"] = to_latent("keyframe interval", self.key_frame_interval, 1)
        return make(frames, **options)

    def without_effect(self) -> list[str]:
        """Settings that differ from their defaults and change nothing, each with the reason."""
        if self.automatic:
            return []
        return [
            f"{flag(name)}: --key-frame-interval sets the interval"
            for name in ("sparsity_scale", "horizon")
            if name in self.changed()
        ]

    def changed(self) -> list[str]:
        """Names of the settings that differ from their defaults."""
        return [name for name, default in DEFAULTS.items() if getattr(self, name) != default]


DEFAULTS = {field.name: field.default for field in fields(LVSASettings)}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class LatentFrames:
    """Converts counts of video frames to latent frames of ``factor`` video frames each."""

    factor: int

    def __call__(self, name: str, value: int | None, smallest: int, default: int = 0) -> int:
        """Latent frames in ``value`` video frames, rounded down with a warning.

        None stands for ``default``, which is rounded up: no model is to fail on a default.

        Raises:
            LVSAError: for a count below ``smallest``, or of less than one latent frame.
        """
        if value is None:
            return -(-default // self.factor)
        if value < smallest:
            raise LVSAError(f"{name} is {value} video frames; it must be at least {smallest}")
        latent, rest = divmod(value, self.factor)
        if value and not latent:
            raise LVSAError(
                f"{name} is {value} video frames, less than one latent frame of {self.factor}; "
                f"nearest value that works: {self.factor}"
            )
        if rest:
            logger.warning(
                "%s: %d video frames are %d latent frames of %d (%d video frames)",
                name,
                value,
                latent,
                self.factor,
                latent * self.factor,
            )
        return latent


def joined(items: Sequence[object], most: int = 12) -> str:
    """A list for a message, cut where it gets long."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f", … ({len(items)} in all)" if len(items) > most else "")
