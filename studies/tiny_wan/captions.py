"""What a clip may show and how its caption says it."""

import itertools
import random
from dataclasses import dataclass

# Saturated and far apart in hue, so that the colour of a shape can be measured by hue alone.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.12),
    "green": (0.12, 0.82, 0.18),
    "blue": (0.14, 0.24, 0.95),
    "yellow": (0.95, 0.88, 0.12),
    "purple": (0.74, 0.14, 0.88),
    "cyan": (0.10, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle", "ring")
MOTIONS = ("bounces", "circles", "drifts left", "drifts right", "drifts up", "drifts down")
MEETING = "meet"

HELD_OUT_SINGLE = 18
HELD_OUT_MEETING = 2


@dataclass(frozen=True)
class Subject:
    """A coloured shape; its words are the caption's."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


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
    """What a text asks for in the captions' words; parts that it does not name are empty."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    motion: str | None


def asked_by(text: str) -> Asked:
    """Reads any text: colours and shapes in its order, and the motion."""
    words = text.lower().replace(",", " ").split()
    spaced = f" {' '.join(words)} "
    motions = [motion for motion in (*MOTIONS, MEETING) if f" {motion} " in spaced]
    return Asked(
        tuple(word for word in words if word in COLOURS),
        tuple(word for word in words if word in SHAPES),
        motions[0] if motions else None,
    )


def single_scenes() -> list[Scene]:
    """Every scene of one subject: colours × shapes × motions."""
    return [
        Scene((Subject(colour, shape),), motion)
        for colour, shape, motion in itertools.product(COLOURS, SHAPES, MOTIONS)
    ]


def meeting_scenes() -> list[Scene]:
    """Every scene of two subjects of different colours, in both orders."""
    subjects = [Subject(*pair) for pair in itertools.product(COLOURS, SHAPES)]
    return [
        Scene((one, other), MEETING)
        for one, other in itertools.product(subjects, subjects)
        if one.colour != other.colour
    ]


def held_out() -> list[Scene]:
    """The 20 scenes that training never shows: 3 of each colour alone, and 2 meetings.

    Each colour, shape and motion by itself is in training; the combinations are new.
    """
    draw = random.Random(2025)
    # The caption of the examples in the documentation stays in training.
    example = Scene((Subject("red", "circle"),), "bounces")
    singles = [scene for scene in single_scenes() if scene != example]
    chosen: list[Scene] = []
    for i in range(HELD_OUT_SINGLE):
        colour, motion = list(COLOURS)[i % len(COLOURS)], MOTIONS[(i + i // 6) % len(MOTIONS)]
        fitting = [
            scene
            for scene in singles
            if scene.subjects[0].colour == colour and scene.motion == motion
        ]
        chosen.append(draw.choice([scene for scene in fitting if scene not in chosen]))
    return chosen + draw.sample(meeting_scenes(), HELD_OUT_MEETING)


def training_scenes(meeting_share: float = 0.2) -> tuple[list[Scene], list[Scene], float]:
    """Single scenes, meetings, and the share of clips that are meetings; held-out ones removed."""
    kept_out = set(held_out())
    singles = [scene for scene in single_scenes() if scene not in kept_out]
    meetings = [scene for scene in meeting_scenes() if scene not in kept_out]
    return singles, meetings, meeting_share
