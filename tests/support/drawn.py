"""Videos of drawn shapes on known paths, to measure."""

import numpy as np

from lvsa.studies.tiny_wan.captions import Scene, Subject
from lvsa.studies.tiny_wan.clips import SIZE, Clip, draw_clip, render

RED = Subject("red", "circle")
CYAN = Subject("cyan", "square")


def pixels_of(clip: Clip) -> np.ndarray:
    """Pixels ``[F, H, W, 3]`` of a clip, 0 to 1."""
    return ((render([clip])[0] + 1) / 2).permute(1, 2, 3, 0).numpy()


def video_of(paths: np.ndarray, subjects: tuple[Subject, ...] = (RED,)) -> np.ndarray:
    """Pixels ``[F, H, W, 3]``, 0 to 1, of shapes on the paths ``[S, F, 2]``."""
    background = np.array([[0.2, 0.22, 0.2], [0.4, 0.4, 0.43]])
    return pixels_of(
        Clip(Scene(subjects, "bounces"), paths, (9.0,) * len(subjects), background, 0.5)
    )


def still(frames: int) -> np.ndarray:
    """Path ``[1, F, 2]`` that stays where it is."""
    return np.full((1, frames, 2), 30.0)


def orbit(frames: int, period: float) -> np.ndarray:
    """Path ``[1, F, 2]`` on a circle, once in ``period`` frames."""
    turn = 2 * np.pi * np.arange(frames) / period
    return (SIZE / 2 + 15 * np.stack([np.cos(turn), np.sin(turn)], axis=1))[None]


def bounce(frames: int) -> np.ndarray:
    """Path ``[1, F, 2]`` off the walls, the two axes' periods far apart, so that none repeats."""
    return draw_clip(Scene((RED,), "bounces"), frames, np.random.default_rng(3)).paths
