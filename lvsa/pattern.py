"""The attention pattern: one boolean matrix [T, T] per keyframe offset.

``attended[o, f, g]`` says whether the queries of latent frame f attend the keys of latent frame g
while the keyframes stand at offset o. It is fixed before any rank is consulted; kernel layouts,
exchange tables, byte counts, FLOPs and pictures are all derived from it.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lvsa.errors import LVSAError
from lvsa.keyframes import (
    Bools,
    attention_budget,
    automatic_interval,
    even_count,
    even_keyframes,
    published_keyframes,
)

Schedule = Literal["published", "even"]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pattern:
    """Which latent frames each latent frame attends. Build it with a class method.

    Args:
        frames: T, latent frames of the video.
        window: half-width W of the local window; a frame sees up to 2W + 1 frames around it.
        n_first: leading frames that everybody attends.
        interval: `published`: spacing of the keyframes. `even`: period of their rotation.
        schedule: how keyframes are spread, see `lvsa.keyframes`.
        keyframes: `even` only, the number of spread keyframes.
        rotate: whether keyframes move by one frame each denoising step.
        expand_window: grow each window until it holds 2W + 1 frames that are not anchors.
        condition_frames: further frames that everybody attends (image or video conditioning).
    """

    frames: int
    window: int = 3
    n_first: int = 1
    interval: int = 1
    schedule: Schedule = "published"
    keyframes: int = 0
    rotate: bool = False
    expand_window: bool = True
    condition_frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value, low in (
            ("frames", self.frames, 1),
            ("window", self.window, 0),
            ("n_first", self.n_first, 0),
            ("interval", self.interval, 1),
        ):
            if value < low:
                raise LVSAError(f"{name} is {value} latent frames; it must be at least {low}")
        if self.schedule not in ("published", "even"):
            raise LVSAError(f"unknown schedule {self.schedule!r}; known: published, even")
        outside = [f for f in self.condition_frames if not 0 <= f < self.frames]
        if outside:
            raise LVSAError(
                f"condition frames {outside} are not latent frames of this video; "
                f"allowed: 0 … {self.frames - 1}"
            )

    @classmethod
    def dense(cls, frames: int) -> "Pattern":
        """Every frame attends every frame."""
        return cls(frames=frames, interval=1)

    @classmethod
    def published(
        cls,
        frames: int,
        *,
        reference: int | None = None,
        interval: int | None = None,
        window: int = 3,
        n_first: int = 1,
        scale: float = 1.0,
        rotate: bool = False,
        expand_window: bool = True,
        condition_frames: tuple[int, ...] = (),
    ) -> "Pattern":
        """Keyframes every ``interval`` frames, or by the automatic rule from ``reference``."""
        if (interval is None) == (reference is None):
            raise LVSAError("give either an interval or a reference horizon, in latent frames")
        if interval is None:
            assert reference is not None
            interval = automatic_interval(frames, reference, window, n_first, scale)
        return cls(
            frames=frames,
            window=window,
            n_first=n_first,
            interval=interval,
            rotate=rotate,
            expand_window=expand_window,
            condition_frames=condition_frames,
        )

    @classmethod
    def even(
        cls,
        frames: int,
        *,
        reference: int | None = None,
        interval: int | None = None,
        window: int = 3,
        n_first: int = 1,
        scale: float = 1.0,
        rotate: bool = False,
        expand_window: bool = True,
        condition_frames: tuple[int, ...] = (),
    ) -> "Pattern":
        """Exactly as many keyframes as the budget leaves, or one for each ``interval`` frames."""
        if (interval is None) == (reference is None):
            raise LVSAError("give either an interval or a reference horizon, in latent frames")
        n_fixed = len({*range(min(n_first, frames)), *condition_frames})
        free = frames - n_fixed
        if reference is not None:
            budget = attention_budget(reference, scale, n_first)
            count = even_count(frames, budget, window, n_fixed)
        else:
            assert interval is not None
            if interval < 1:
                raise LVSAError(f"interval is {interval} latent frames; it must be at least 1")
            count = -(-free // interval)
        return cls(
            frames=frames,
            window=window,
            n_first=n_first,
            interval=-(-free // count) if count else 1,
            schedule="even",
            keyframes=count,
            rotate=rotate,
            expand_window=expand_window,
            condition_frames=condition_frames,
        )

    @property
    def n_offsets(self) -> int:
        """Distinct keyframe offsets: 1 where keyframes stand still."""
        return self.interval if self.rotate else 1

    def offset(self, step: int) -> int:
        """The keyframe offset of a denoising step, counted from 0 in every generation."""
        if step < 0:
            raise LVSAError(f"denoising step is {step}; steps are counted from 0")
        return step % self.n_offsets

    @cached_property
    def fixed_anchors(self) -> tuple[int, ...]:
        """Anchors that do not move: the first frames and the conditioning frames."""
        return tuple(sorted({*range(min(self.n_first, self.frames)), *self.condition_frames}))

    @cached_property
    def anchors(self) -> Bools:
        """``[n_offsets, T]``: frames that every query attends."""
        rows = []
        for offset in range(self.n_offsets):
            if self.schedule == "even":
                row = even_keyframes(self.frames, self.fixed_anchors, self.keyframes, offset)
            else:
                row = published_keyframes(self.frames, self.interval, offset)
            row[list(self.fixed_anchors)] = True
            rows.append(row)
        return np.stack(rows)

    @cached_property
    def windows(self) -> tuple[Ints, Ints]:
        """First and last frame of every window, each ``[n_offsets, T]``.

        The adaptive bounds slide inwards at the ends of the video. Expanded windows then take one
        frame left and one right, in turn, until they hold min(2W + 1, T − |G|) frames that are
        not anchors; the number of turns is found by bisection, for all frames at once.
        """
        T, W = self.frames, self.window
        frame = np.arange(T)
        low = np.maximum(0, np.minimum(frame - W, T - 1 - 2 * W))
        high = np.minimum(T - 1, np.maximum(frame + W, 2 * W))
        low, high = (np.broadcast_to(x, (self.n_offsets, T)).copy() for x in (low, high))
        if not self.expand_window:
            return low, high
        free = ~self.anchors
        before = np.concatenate([np.zeros((self.n_offsets, 1), np.int64), free.cumsum(1)], axis=1)
        wanted = np.minimum(2 * W + 1, free.sum(1))[:, None]

        def grown(turns: Ints) -> tuple[Ints, Ints]:
            return np.maximum(0, low - (turns + 1) // 2), np.minimum(T - 1, high + turns // 2)

        enough, too_few = np.full_like(low, 2 * T), np.full_like(low, -1)
        while (enough - too_few > 1).any():
            middle = (enough + too_few) // 2
            a, b = grown(middle)
            held = np.take_along_axis(before, b + 1, 1) - np.take_along_axis(before, a, 1)
            enough = np.where(held >= wanted, middle, enough)
            too_few = np.where(held >= wanted, too_few, middle)
        return grown(enough)

    @cached_property
    def attended(self) -> Bools:
        """``[n_offsets, T, T]``: the pattern itself, anchors and windows together."""
        low, high = self.windows
        frame = np.arange(self.frames, dtype=np.int64)
        matrix = frame >= low[..., None]
        matrix &= frame <= high[..., None]
        matrix |= self.anchors[:, None, :]
        return matrix

    @property
    def frames_attended(self) -> Ints:
        """``[n_offsets, T]``: how many frames each frame attends."""
        return self.attended.sum(-1)

    @property
    def density(self) -> float:
        """Attended share of all (query, key) frame pairs, over all offsets; 1.0 is dense."""
        return float(self.attended.mean())

    @property
    def is_dense(self) -> bool:
        """Whether every query attends every key at every offset."""
        return bool(self.attended.all())

    @cached_property
    def digest(self) -> str:
        """A short fingerprint of the matrix: ranks compare it before they run."""
        # The shape counts too: matrices of other shapes may pack to the same bits.
        packed = repr(self.attended.shape).encode() + np.packbits(self.attended).tobytes()
        return hashlib.sha256(packed).hexdigest()[:16]
