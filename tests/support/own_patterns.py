"""Patterns that no placement makes, each with its attended sets by [offset][frame] in loops."""

from math import lcm

import numpy as np

from lvsa.keyframes import published
from lvsa.pattern import Pattern
from tests.support.oracle import placed

T = 10
FRAMES = range(T)


def matrix(sets: list[set[int]]) -> np.ndarray:
    return np.array([[g in attended for g in FRAMES] for attended in sets])


def own(*sets: list[set[int]]) -> tuple[Pattern, list[list[set[int]]]]:
    return Pattern.of([matrix(of_offset) for of_offset in sets]), [*sets]


def composed(operation: str, *parts):
    patterns, of_parts = zip(*parts, strict=True)
    a, b = of_parts
    sets = [
        [
            p | q if operation == "or" else p & q
            for p, q in zip(a[offset % len(a)], b[offset % len(b)], strict=True)
        ]
        for offset in range(lcm(len(a), len(b)))
    ]
    first, second = patterns
    return (first | second if operation == "or" else first & second), sets


def keyframes(**options):
    return published(T, **options), placed("published", T, **options)


def near(f: int, g: int) -> bool:
    """The nearer, the more: all neighbors, every second frame further off, every fourth beyond."""
    distance = abs(f - g)
    return distance < 3 or distance % (2 if distance < 6 else 4) == 0


RADIAL = own([{g for g in FRAMES if near(f, g)} for f in FRAMES])
CAUSAL = own([{g for g in FRAMES if g <= f} for f in FRAMES])
BLOCK_CAUSAL = own([{g for g in FRAMES if g // 3 <= f // 3} for f in FRAMES])
ROTATING = keyframes(interval=3, window=1, rotate=True)

OWN_PATTERNS = {
    "radial": RADIAL,
    "causal": CAUSAL,
    "block-causal": BLOCK_CAUSAL,
    # No frame attends itself, and the last rank's keys go to the first.
    "previous": own([{(f - 1) % T} for f in FRAMES]),
    # What a rank needs changes from nothing to everything.
    "alternating": own([{f} for f in FRAMES], [{*FRAMES}] * T),
    "radial or keyframes": composed("or", RADIAL, ROTATING),
    "block-causal and keyframes": composed("and", BLOCK_CAUSAL, ROTATING),
    "rotating or alternating": composed(
        "or", ROTATING, own([{f} for f in FRAMES], [{f, (f + 5) % T} for f in FRAMES])
    ),
}
"""By name."""
