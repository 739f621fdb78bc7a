"""Measures of a video of a colored shape: freezing, looping, motion, fidelity and more.

All measures take a video as an array ``[F, H, W, 3]`` with values 0 to 1. They follow the pixels
whose color is far from gray, so they fit clips of colored shapes on a dull background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvsa.errors import LVSAError
from lvsa.studies.quality.fidelity import meets, motion_of, shape_in
from lvsa.studies.quality.tracking import LEAST_AREA, Track, classify, smooth, track
from lvsa.studies.tiny_wan.captions import COLORS, MEETING, asked_by

CHANGE = 1 / 16
"""A pair of frames is near-identical if all but 0.5 % of the pixels differ by less than this."""
MOVING_SPAN = 1 / 16
"""A shape moves if its path reaches over more than this share of the frame's width."""
RIGHT_SHARE = 0.8
"""A video's color or shape is right if it is so in at least this share of the frames."""


@dataclass(frozen=True)
class Quality:
    """Measures of one video."""

    frames: int
    frozen: float
    """Share of consecutive frames that are near-identical."""
    loop: float
    """Highest autocorrelation of the object's velocity at lags after its first fall, 0 to 1."""
    path: float
    """Length of the object's path, frame widths."""
    span: float
    """Farthest reach of the path along either axis, frame widths."""
    persistence: float
    """Share of frames with an object of about its usual area."""
    motion: str
    """Motion of the object, as `fidelity.motion_of` names it; "meet" for two that do."""
    color: float | None
    """Share of frames in which the asked colors are there and none else prevails."""
    shape: float | None
    """Share of frames in which every asked object has the asked shape."""
    motion_right: bool | None
    """Whether `motion` is the one asked for."""

    @property
    def moves(self) -> bool:
        """Whether the path reaches over more than `MOVING_SPAN`."""
        return self.span > MOVING_SPAN

    @property
    def color_right(self) -> bool:
        """Whether `color` is at least `RIGHT_SHARE`."""
        return self.color is not None and self.color >= RIGHT_SHARE

    @property
    def shape_right(self) -> bool:
        """Whether `shape` is at least `RIGHT_SHARE`."""
        return self.shape is not None and self.shape >= RIGHT_SHARE


def measure(video: np.ndarray, caption: str = "") -> Quality:
    """All measures of a video.

    Args:
        video: ``[F, H, W, 3]``, 0 to 1.
        caption: what the video should show. Its first color tells which object to follow,
            otherwise that of the prevailing color; what it does not name is not judged.

    Raises:
        LVSAError: for an array that is no video.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise LVSAError(
            f"a video has shape [frames, height, width, 3] and at least 2 frames, "
            f"not {list(video.shape)}"
        )
    asked = asked_by(caption)
    labels = classify(video)
    height, width = video.shape[1:3]
    tracks = [track(labels, color) for color in asked.colors or (None,)]
    found = tracks[0]
    steps = np.diff(smooth(found.path), axis=0)
    span = float((found.path.max(axis=0) - found.path.min(axis=0)).max())
    motion = motion_of(smooth(found.path, 9), MOVING_SPAN * width)
    if len(tracks) == 2 and meets(tracks[0].path, tracks[1].path, np.array([width, height])):
        motion = MEETING
    judged = len(asked.shapes) == len(asked.colors) > 0
    return Quality(
        frames=len(video),
        frozen=frozen_share(video),
        loop=loop_peak(steps),
        path=float(np.linalg.norm(steps, axis=1).sum()) / width,
        span=span / width,
        persistence=persistence(found.area, LEAST_AREA * height * width),
        motion=motion,
        color=color_share(labels, asked.colors) if asked.colors else None,
        shape=shape_share(tracks, asked.shapes) if judged else None,
        motion_right=motion == asked.motion if asked.motion else None,
    )


def frozen_share(video: np.ndarray) -> float:
    """Share of consecutive pairs of frames that are near-identical."""
    changes = np.abs(np.diff(video, axis=0)).max(axis=-1).reshape(len(video) - 1, -1)
    return float((np.quantile(changes, 0.995, axis=1) < CHANGE).mean())


def loop_peak(steps: np.ndarray, fallen: float = 0.3) -> float:
    """Peak of the autocorrelation of a velocity ``[N, 2]``, its mean removed, up to lag N/2.

    Any smooth motion resembles itself a moment later; only lags after the autocorrelation has
    first fallen below ``fallen`` count. An unmoving object and a steady drift give 0.
    """
    velocity = steps - steps.mean(axis=0)
    # A drift's velocity less its mean is tracking jitter, which resembles anything by chance.
    if len(steps) < 8 or np.linalg.norm(velocity, axis=1).mean() < 0.1:
        return 0.0
    lags = range(1, len(velocity) // 2 + 1)
    correlation = np.array([_correlation(velocity[:-lag], velocity[lag:]) for lag in lags])
    below = np.flatnonzero(correlation < fallen)
    return float(max(0.0, correlation[below[0] :].max())) if len(below) else 0.0


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle between two velocities ``[N, 2]``; 0 where either is 0 throughout."""
    energy = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / energy) if energy > 0 else 0.0


def persistence(area: np.ndarray, least: float) -> float:
    """Share of frames with an object of 0.4 to 2.5 times its median area.

    Where most frames have none, no area is usual and the share is that of frames with any.
    """
    seen = area[area >= least]
    if not len(seen):
        return 0.0
    usual = float(np.median(seen))
    return float(((area >= max(least, 0.4 * usual)) & (area <= 2.5 * usual)).mean())


def color_share(labels: np.ndarray, colors: Sequence[str]) -> float:
    """Share of frames with every asked color, together on most of the colored pixels."""
    asked = [list(COLORS).index(color) for color in colors]
    counts = np.stack([(labels == i).sum(axis=(1, 2)) for i in range(len(COLORS))], axis=1)
    least = LEAST_AREA * labels[0].size
    there = (counts[:, asked] >= least).all(axis=1)
    prevailing = counts[:, list(set(asked))].sum(axis=1) > 0.5 * counts.sum(axis=1)
    return float((there & prevailing).mean())


def shape_share(tracks: Sequence[Track], shapes: Sequence[str]) -> float:
    """Share of frames in which each object is there and looks most like its shape."""
    right = np.ones(len(tracks[0].path), dtype=bool)
    for found, shape in zip(tracks, shapes, strict=True):
        least = LEAST_AREA * found.mask[0].size
        for i, (mask, center) in enumerate(zip(found.mask, found.path, strict=True)):
            right[i] &= mask.sum() >= least and shape_in(mask, center) == shape
    return float(right.mean())
