"""What a video of a coloured shape does, in numbers: freezing, looping, motion, fidelity and more.

All measures take a video as an array ``[F, H, W, 3]`` with values 0 to 1. They follow the pixels
whose colour is far from grey, so they fit clips of coloured shapes on a dull background. Positions
wrap around at the edges, where shapes may leave on one side and come in at the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvsa.errors import LVSAError
from lvsa.studies.quality.fidelity import meets, motion_of, shape_in
from lvsa.studies.tiny_wan.captions import COLOURS, MEETING, asked_by

CHROMA = 0.3
"""Least difference between a coloured pixel's largest and smallest channel."""
LEAST_AREA = 0.01
"""Least share of a frame's pixels that counts as an object."""
CHANGE = 1 / 16
"""A pair of frames is near-identical if all but 0.5 % of the pixels differ by less than this."""
MOVING_SPAN = 1 / 16
"""A shape moves if its path reaches over more than this share of the frame's width."""


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
    """What the object does, as `fidelity.motion_of` names it; "meet" for two that do."""
    colour: float | None
    """Share of frames in which the asked colours are there and none else prevails."""
    shape: float | None
    """Share of frames in which every asked object has the asked shape."""
    motion_right: bool | None
    """Whether `motion` is the one asked for."""

    @property
    def moves(self) -> bool:
        return self.span > MOVING_SPAN

    @property
    def colour_right(self) -> bool:
        """In 4 of 5 frames at least."""
        return self.colour is not None and self.colour >= 0.8

    @property
    def shape_right(self) -> bool:
        """In 4 of 5 frames at least."""
        return self.shape is not None and self.shape >= 0.8


@dataclass(frozen=True)
class Track:
    """The object's course through a video."""

    path: np.ndarray
    """``[F, 2]`` unwrapped centres (x, y), pixels; frames without object repeat the last."""
    mask: np.ndarray
    """``[F, H, W]``, true on the object."""

    @property
    def area(self) -> np.ndarray:
        """``[F]`` pixels of the object."""
        return np.asarray(self.mask.sum(axis=(1, 2)))


def measure(video: np.ndarray, caption: str = "") -> Quality:
    """All measures of a video.

    Args:
        video: ``[F, H, W, 3]``, 0 to 1.
        caption: what the video should show. Its first colour tells which object to follow,
            otherwise that of the prevailing colour; what it does not name is not judged.

    Raises:
        LVSAError: for an array that is no video.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise LVSAError(
            f"a video has shape [frames, height, width, 3] and at least 2 frames, "
            f"not {list(video.shape)}"
        )
    asked = asked_by(caption)
    names = classify(video)
    height, width = video.shape[1:3]
    tracks = [track(names, colour) for colour in asked.colours or (None,)]
    found = tracks[0]
    steps = np.diff(smooth(found.path), axis=0)
    span = float((found.path.max(axis=0) - found.path.min(axis=0)).max())
    motion = motion_of(smooth(found.path, 9), MOVING_SPAN * width)
    if len(tracks) == 2 and meets(tracks[0].path, tracks[1].path, np.array([width, height])):
        motion = MEETING
    judged = len(asked.shapes) == len(asked.colours) > 0
    return Quality(
        frames=len(video),
        frozen=frozen_share(video),
        loop=loop_peak(steps),
        path=float(np.linalg.norm(steps, axis=1).sum()) / width,
        span=span / width,
        persistence=persistence(found.area, LEAST_AREA * height * width),
        motion=motion,
        colour=colour_share(names, asked.colours) if asked.colours else None,
        shape=shape_share(tracks, asked.shapes) if judged else None,
        motion_right=motion == asked.motion if asked.motion else None,
    )


def hue(pixels: np.ndarray) -> np.ndarray:
    """Hue ``[...]`` of colours ``[..., 3]``, radians: the angle around the grey axis."""
    r, g, b = np.moveaxis(pixels, -1, 0)
    return np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)


def classify(video: np.ndarray) -> np.ndarray:
    """For each pixel ``[F, H, W]`` the index of the nearest of `COLOURS` by hue; −1 for grey."""
    coloured = video.max(axis=-1) - video.min(axis=-1) > CHROMA
    palette = hue(np.array(list(COLOURS.values())))
    names = np.full(video.shape[:3], -1)
    away = np.angle(np.exp(1j * (hue(video[coloured])[:, None] - palette)))
    names[coloured] = np.abs(away).argmin(axis=1)
    return names


def track(names: np.ndarray, colour: str | None = None) -> Track:
    """Follows the pixels of one colour, or of the one that most pixels of the video have."""
    if colour is None:
        which = int(np.bincount(names[names >= 0], minlength=len(COLOURS)).argmax())
    else:
        which = list(COLOURS).index(colour)
    mask = names == which
    area = mask.sum(axis=(1, 2))
    wrapped = np.stack([_centre(mask.sum(axis=1)), _centre(mask.sum(axis=2))], axis=1)
    size = np.array([names.shape[2], names.shape[1]])
    present = area >= LEAST_AREA * names[0].size
    path = np.zeros_like(wrapped)
    last = None
    for i in range(len(path)):
        if not present[i]:
            path[i] = path[i - 1] if i else 0
            continue
        # The first sighting starts the path; later ones go on from it by the shorter way round.
        if last is None:
            path[: i + 1] = wrapped[i]
        else:
            path[i] = path[i - 1] + (wrapped[i] - wrapped[last] + size / 2) % size - size / 2
        last = i
    return Track(path, mask)


def _centre(counts: np.ndarray) -> np.ndarray:
    """Circular mean ``[F]`` of positions 0 … N−1 with weights ``[F, N]``."""
    n = counts.shape[1]
    turns = np.exp(2j * np.pi * (np.arange(n) + 0.5) / n)
    return np.asarray((np.angle(counts @ turns) % (2 * np.pi)) * n / (2 * np.pi))


def smooth(path: np.ndarray, width: int = 5) -> np.ndarray:
    """Mean over a window of ``width`` frames, which takes the jitter out of a path ``[F, 2]``."""
    if len(path) <= width:
        return path
    kernel = np.ones(width) / width
    return np.stack([np.convolve(axis, kernel, mode="valid") for axis in path.T], axis=1)


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


def colour_share(names: np.ndarray, colours: Sequence[str]) -> float:
    """Share of frames with every asked colour, together on most of the coloured pixels."""
    asked = [list(COLOURS).index(colour) for colour in colours]
    counts = np.stack([(names == i).sum(axis=(1, 2)) for i in range(len(COLOURS))], axis=1)
    least = LEAST_AREA * names[0].size
    there = (counts[:, asked] >= least).all(axis=1)
    prevailing = counts[:, list(set(asked))].sum(axis=1) > 0.5 * counts.sum(axis=1)
    return float((there & prevailing).mean())


def shape_share(tracks: Sequence[Track], shapes: Sequence[str]) -> float:
    """Share of frames in which each object is there and looks most like its shape."""
    right = np.ones(len(tracks[0].path), dtype=bool)
    for found, shape in zip(tracks, shapes, strict=True):
        least = LEAST_AREA * found.mask[0].size
        for i, (mask, centre) in enumerate(zip(found.mask, found.path, strict=True)):
            right[i] &= mask.sum() >= least and shape_in(mask, centre) == shape
    return float(right.mean())
