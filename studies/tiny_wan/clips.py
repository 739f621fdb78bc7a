"""Clips drawn from a scene: where shapes go, and their pixels.

Pictures wrap around at their edges for shapes that drift, so that any stretch of a clip looks
like any other and no clip runs out.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from lvsa.studies.tiny_wan.captions import COLORS, DIRECTIONS, MEETING, Scene, training_scenes
from lvsa.studies.tiny_wan.shapes import distance

SIZE = 64
"""Height and width of a clip, pixels."""
MEETING_SHARE = 0.2
"""Share of the training clips that show two subjects."""


@dataclass(frozen=True)
class Clip:
    """A scene with everything that its caption leaves open."""

    scene: Scene
    paths: np.ndarray
    """``[S, F, 2]`` centers of the S subjects in F frames, (x, y) in pixels."""
    radii: tuple[float, ...]
    """Half extents of the subjects, pixels."""
    background: np.ndarray
    """``[2, 3]`` two colors, 0 to 1, shaded from one to the other."""
    slope: float
    """Direction of the shading, radians."""

    @property
    def frames(self) -> int:
        return int(self.paths.shape[1])


def draw_clip(scene: Scene, frames: int, draw: Generator) -> Clip:
    """A clip of a scene: size, path, speed and background drawn at random."""
    radii = tuple(float(draw.uniform(8.0, 11.0)) for _ in scene.subjects)
    if scene.motion == MEETING:
        paths = _meet(frames, radii, draw)
    elif scene.motion == "bounces":
        paths = _bounce(frames, radii[0], draw)[None]
    elif scene.motion == "circles":
        paths = _circle(frames, radii[0], draw)[None]
    else:
        paths = _drift(frames, DIRECTIONS[scene.motion.split()[-1]], draw)[None]
    # Dim and almost gray: nothing in the background is as saturated as a shape.
    gray = draw.uniform(0.08, 0.5, size=(2, 1))
    background = np.clip(gray + draw.uniform(-0.04, 0.04, size=(2, 3)), 0, 1)
    return Clip(scene, paths, radii, background, float(draw.uniform(0, 2 * math.pi)))


def _reflect(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """A straight line folded between two walls."""
    return low + (high - low) - np.abs((x - low) % (2 * (high - low)) - (high - low))


def _bounce(frames: int, radius: float, draw: Generator) -> np.ndarray:
    """Straight lines at constant speed, 0.8 to 1.3 pixels a frame, off the walls."""
    start = draw.uniform(radius, SIZE - radius, size=2)
    # Away from the axes: a shape that meets only two walls could be drifting.
    angle = draw.uniform(0.3, math.pi / 2 - 0.3) + draw.integers(4) * math.pi / 2
    velocity = draw.uniform(0.8, 1.3) * np.array([math.cos(angle), math.sin(angle)])
    line = start + velocity * np.arange(frames)[:, None]
    return _reflect(line, radius, SIZE - radius)


def _circle(frames: int, radius: float, draw: Generator) -> np.ndarray:
    """A round orbit of 12 to 18 pixels, once in 48 to 80 frames, either way."""
    orbit = draw.uniform(12.0, 18.0)
    room = SIZE / 2 - radius - orbit
    center = SIZE / 2 + draw.uniform(-max(room, 0.0), max(room, 0.0), size=2)
    turn = 2 * math.pi / draw.uniform(48, 80) * draw.choice([-1, 1])
    phase = draw.uniform(0, 2 * math.pi) + turn * np.arange(frames)
    return center + orbit * np.stack([np.cos(phase), np.sin(phase)], axis=1)


def _drift(frames: int, direction: tuple[int, int], draw: Generator) -> np.ndarray:
    """One direction at 0.5 to 0.9 pixels a frame, out at one edge and in at the other."""
    start = draw.uniform(0, SIZE, size=2)
    # Across its way a shape keeps clear of the edges.
    across = 1 if direction[0] else 0
    start[across] = draw.uniform(14, SIZE - 14)
    line = start + draw.uniform(0.5, 0.9) * np.array(direction) * np.arange(frames)[:, None]
    return line % SIZE


def _meet(frames: int, radii: tuple[float, ...], draw: Generator) -> np.ndarray:
    """Two subjects come together, touch in the middle, part, and come together again."""
    middle = draw.uniform(26, SIZE - 26, size=2)
    angle = draw.uniform(0, 2 * math.pi)
    way = np.array([math.cos(angle), math.sin(angle)])
    closest = sum(radii) * 0.95
    # The far end of the way leaves both inside the picture whatever the angle.
    farthest = closest + draw.uniform(14, 20)
    period = draw.uniform(40, 64)
    triangle = _reflect(draw.uniform(0, period) + np.arange(frames), 0, period / 2) / (period / 2)
    gap = closest + (farthest - closest) * triangle
    center = SIZE / 2 + (middle - SIZE / 2) * 0.3
    offset = 0.5 * gap[:, None] * way
    return np.stack([center - offset, center + offset])


def random_clip(frames: int, draw: Generator) -> Clip:
    """A clip of a scene from the training set."""
    singles, meetings = training_scenes()
    scenes = meetings if draw.random() < MEETING_SHARE else singles
    return draw_clip(scenes[int(draw.integers(len(scenes)))], frames, draw)


def render(clips: list[Clip], first: int = 0, frames: int | None = None) -> Tensor:
    """Pixels ``[B, 3, F, 64, 64]`` of clips, −1 to 1, edges smooth over a pixel.

    Args:
        clips: of one length.
        first, frames: the stretch of the clips to render; by default the whole.
    """
    return torch.stack([_render(clip, first, frames or clip.frames) for clip in clips])


def _render(clip: Clip, first: int, frames: int) -> Tensor:
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = (x - SIZE / 2) * math.cos(clip.slope) + (y - SIZE / 2) * math.sin(clip.slope)
    blend = (along / SIZE + 0.5).clamp(0, 1)
    one, other = torch.tensor(clip.background, dtype=torch.float32)
    picture = one[:, None, None] * (1 - blend) + other[:, None, None] * blend
    video = picture[:, None].repeat(1, frames, 1, 1)
    for subject, path, radius in zip(clip.scene.subjects, clip.paths, clip.radii, strict=True):
        center = torch.tensor(path[first : first + frames], dtype=torch.float32)
        # Distances on the torus; only drifting shapes come near enough to an edge to wrap.
        dx = _wrapped(x - center[:, 0, None, None])
        dy = _wrapped(y - center[:, 1, None, None])
        cover = (0.5 - distance(subject.shape, dx, dy, radius)).clamp(0, 1)
        color = torch.tensor(COLORS[subject.color])[:, None, None, None]
        video = video * (1 - cover) + color * cover
    return video * 2 - 1


def _wrapped(distance: Tensor) -> Tensor:
    return (distance + SIZE / 2) % SIZE - SIZE / 2
