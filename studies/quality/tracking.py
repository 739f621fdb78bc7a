"""Tracking of a colored object: which pixels are its own, and its path from frame to frame.

Positions wrap around at the edges, where shapes may leave on one side and come in at the other.
"""

from dataclasses import dataclass

import numpy as np

from lvsa.studies.tiny_wan.captions import COLORS

CHROMA = 0.3
"""Least difference between a colored pixel's largest and smallest channel."""
LEAST_AREA = 0.01
"""Least share of a frame's pixels that counts as an object."""


@dataclass(frozen=True)
class Track:
    """Path and pixels of an object."""

    path: np.ndarray
    """Centers ``[F, 2]`` (x, y), pixels, counted on across edges; frames without the object repeat
    the last one."""
    mask: np.ndarray
    """Pixels ``[F, H, W]`` of the object, true on it."""

    @property
    def area(self) -> np.ndarray:
        """Number ``[F]`` of the object's pixels."""
        return np.asarray(self.mask.sum(axis=(1, 2)))


def hue(pixels: np.ndarray) -> np.ndarray:
    """Hue ``[...]`` of colors ``[..., 3]``, radians: the angle around the gray axis."""
    r, g, b = np.moveaxis(pixels, -1, 0)
    return np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)


def classify(video: np.ndarray) -> np.ndarray:
    """Index ``[F, H, W]`` of the color in `COLORS` nearest to each pixel by hue; −1 for gray."""
    colored = video.max(axis=-1) - video.min(axis=-1) > CHROMA
    palette = hue(np.array(list(COLORS.values())))
    labels = np.full(video.shape[:3], -1)
    away = np.angle(np.exp(1j * (hue(video[colored])[:, None] - palette)))
    labels[colored] = np.abs(away).argmin(axis=1)
    return labels


def track(labels: np.ndarray, color: str | None = None) -> Track:
    """Track of the pixels of one color.

    Args:
        labels: ``[F, H, W]`` from `classify`.
        color: of `COLORS`; by default the one that most pixels have.
    """
    if color is None:
        which = int(np.bincount(labels[labels >= 0], minlength=len(COLORS)).argmax())
    else:
        which = list(COLORS).index(color)
    mask = labels == which
    seen = np.flatnonzero(mask.sum(axis=(1, 2)) >= LEAST_AREA * labels[0].size)
    if not len(seen):
        return Track(np.zeros((len(labels), 2)), mask)
    # From one sighting to the next by the shorter way round; frames between repeat the last.
    axes = [
        np.unwrap(_center(counts), period=counts.shape[1])
        for counts in (mask[seen].sum(axis=1), mask[seen].sum(axis=2))
    ]
    latest = np.searchsorted(seen, np.arange(len(labels)), side="right") - 1
    return Track(np.stack(axes, axis=1)[np.maximum(latest, 0)], mask)


def _center(counts: np.ndarray) -> np.ndarray:
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
