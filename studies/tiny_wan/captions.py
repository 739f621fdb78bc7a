"""Captions: what a clip may show and the words that say it."""

import itertools
import random
from dataclasses import dataclass
from functools import cache

# Saturated and far apart in hue, so that the color of a shape can be measured by hue alone.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.12),
    "green": (0.12, 0.82, 0.18),
    "blue": (0.14, 0.24, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "purple": (0.74, 0.14, 0.88),
    "cyan": (0.10, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle", "ring")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps (x, y) of a drift; y grows downwards."""
MOTIONS = ("bounces", "circles", *(f"drifts {direction}" for direction in DIRECTIONS))
"""Motions of one subject."""
MEETING = "meet"
"""Motion of two subjects."""

HELD_OUT_SINGLE = 18
HELD_OUT_MEETING = 2


@dataclass(frozen=True)
class Subject:
    """A colored shape, in the caption's words."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One moving subject, or two that meet."""

    subjects: tuple[Subject, ...]
    motion: str

    @property
    def caption(self) -> str:
        """Such as "a red circle bounces" or "a red circle and a blue ring meet"."""
        return " and ".join(str(subject) for subject in self.subjects) + f" {self.motion}"


@dataclass(frozen=True)
class Asked:
    """Colors, shapes and motion that a text asks for; parts that it does not name are empty."""

    colors: tuple[str, ...]
    shapes: tuple[str, ...]
    motion: str | None


def asked_by(text: str) -> Asked:
    """What a text asks for: its colors and shapes in their order, and the motion."""
    words = text.lower().replace(",", " ").split()
    spaced = f" {' '.join(words)} "
    motions = [motion for motion in (*MOTIONS, MEETING) if f" {motion} " in spaced]
    return Asked(
        tuple(word for word in words if word in COLORS),
        tuple(word for word in words if word in SHAPES),
        motions[0] if motions else None,
    )


def single_scenes() -> list[Scene]:
    """Every scene of one subject: colors × shapes × motions."""
    return [
        Scene((Subject(color, shape),), motion)
        for color, shape, motion in itertools.product(COLORS, SHAPES, MOTIONS)
    ]


def meeting_scenes() -> list[Scene]:
    """Every scene of two subjects of different colors, in both orders."""
    subjects = [Subject(*pair) for pair in itertools.product(COLORS, SHAPES)]
    return [
        Scene((one, other), MEETING)
        for one, other in itertools.product(subjects, subjects)
        if one.color != other.color
    ]


def held_out() -> list[Scene]:
    """The 20 scenes that training never shows: 3 of each color alone, and 2 meetings.

    Each color, shape and motion by itself is in training; the combinations are new.
    """
    draw = random.Random(2025)
    # The caption of the examples in the documentation stays in training.
    example = Scene((Subject("red", "circle"),), "bounces")
    singles = [scene for scene in single_scenes() if scene != example]
    chosen: list[Scene] = []
    for i in range(HELD_OUT_SINGLE):
        color, motion = list(COLORS)[i % len(COLORS)], MOTIONS[(i + i // 6) % len(MOTIONS)]
        fitting = [
            scene
            for scene in singles
            if scene.subjects[0].color == color and scene.motion == motion
        ]
        chosen.append(draw.choice([scene for scene in fitting if scene not in chosen]))
    return chosen + draw.sample(meeting_scenes(), HELD_OUT_MEETING)


@cache
def training_scenes() -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Scenes of one subject, and of two, without the held-out ones."""
    kept_out = set(held_out())
    return (
        tuple(scene for scene in single_scenes() if scene not in kept_out),
        tuple(scene for scene in meeting_scenes() if scene not in kept_out),
    )
