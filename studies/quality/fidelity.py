"""Shape and motion of an object, recognized from its pixels and its path."""

import numpy as np
import torch

from lvsa.studies.tiny_wan.captions import DIRECTIONS, SHAPES
from lvsa.studies.tiny_wan.shapes import distance, radius_of

LAG = 4
"""Frames between the two velocities whose angle is a turn; one frame's angle is mostly jitter."""
CURVED, STRAIGHT = 0.15, 0.25
"""Turns, radians in `LAG` frames, above which a path curves and below which it is straight. The
training data's circles turn by 0.31 to 0.52."""
TOUCHING, PARTING = 0.45, 0.1
"""Frame widths: the centers of two shapes that meet come nearer than the first, and their
distance changes by more than the second."""


def shape_in(mask: np.ndarray, center: np.ndarray) -> str:
    """Name of the shape that fits an object's pixels best.

    Args:
        mask: ``[H, W]``, true on the object.
        center: ``[2]`` of the object, (x, y) in pixels.

    Returns:
        Of `SHAPES`, drawn at the center with the object's own area, the one with the largest
        intersection over union.
    """
    height, width = mask.shape
    # On the torus, as a drifting shape may lie across an edge.
    dx = (torch.arange(width) + 0.5 - center[0] + width / 2) % width - width / 2
    dy = (torch.arange(height) + 0.5 - center[1] + height / 2) % height - height / 2
    object_ = torch.from_numpy(mask)
    fits = {}
    for shape in SHAPES:
        drawn = distance(shape, dx[None], dy[:, None], radius_of(shape, mask.sum())) < 0
        fits[shape] = int((drawn & object_).sum()) / max(1, int((drawn | object_).sum()))
    return max(fits, key=lambda shape: fits[shape])


def motion_of(path: np.ndarray, moving: float) -> str:
    """Motion of an object, in the captions' words.

    Args:
        path: ``[F, 2]`` smoothed and unwrapped centers, (x, y) in pixels.
        moving: span in pixels that a moving object exceeds.

    Returns:
        "circles" if the path keeps turning the same way, "drifts …" if it keeps to one direction
        of the four, "bounces" if it is straight but for sudden turns, "stays" if its span is not
        above ``moving``, "wanders" for all else, and for paths too short to tell.
    """
    if (path.max(axis=0) - path.min(axis=0)).max() <= moving:
        return "stays"
    if len(path) <= 2 * LAG:
        return "wanders"
    steps = np.diff(path, axis=0)
    velocity = steps[:, 0] + 1j * steps[:, 1]
    turns = np.angle(velocity[LAG:] * velocity[:-LAG].conj())
    if max((turns > CURVED).mean(), (turns < -CURVED).mean()) > 0.7:
        return "circles"
    net = path[-1] - path[0]
    length = np.linalg.norm(steps, axis=1).sum()
    axis = int(np.abs(net).argmax())
    if abs(net[axis]) > 0.75 * length and abs(net[1 - axis]) < 0.25 * abs(net[axis]):
        return f"drifts {max(DIRECTIONS, key=lambda word: net @ DIRECTIONS[word])}"
    return "bounces" if (np.abs(turns) < STRAIGHT).mean() > 0.4 else "wanders"


def meets(one: np.ndarray, other: np.ndarray, size: np.ndarray) -> bool:
    """Whether two objects come near each other and part.

    Args:
        one, other: ``[F, 2]`` centers, (x, y) in pixels.
        size: ``[2]`` width and height of the frame, pixels.
    """
    between = (one - other + size / 2) % size - size / 2
    gap = np.linalg.norm(between, axis=1) / size[0]
    return bool(gap.min() < TOUCHING and gap.max() - gap.min() > PARTING)
