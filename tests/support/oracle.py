"""Independent oracles: written from the definition, sharing no code with the package.

Everything here loops over frames and tokens in plain Python and masks dense attention, so that it
can be read against the definition line by line.
"""

import math

import torch


def attended_set(
    T: int, W: int, n_first: int, keyframes: set[int], frame: int, expand: bool = True
) -> set[int]:
    """A(f): anchors, and the window grown left and right in turn."""
    anchors = set(range(min(n_first, T))) | keyframes
    low = max(0, min(frame - W, T - 1 - 2 * W))
    high = min(T - 1, max(frame + W, 2 * W))
    wanted = min(2 * W + 1, T - len(anchors))
    left = True
    while expand and len(set(range(low, high + 1)) - anchors) < wanted:
        if left:
            low = max(0, low - 1)
        else:
            high = min(T - 1, high + 1)
        left = not left
    return anchors | set(range(low, high + 1))


def published_keyframes(T: int, interval: int, offset: int) -> set[int]:
    return {(offset + i * interval) % T for i in range(math.ceil(T / interval))}


def published_interval(T: int, horizon: int, W: int, n_first: int, scale: float = 1.0) -> int:
    """The published rule, word by word, with anchor sets that are really built."""
    r = max(n_first + 1, int(horizon * scale))
    if r >= T:
        return 1
    g = max(n_first, r - min(2 * W + 1, T))
    enough = [
        interval
        for interval in range(1, T + 1)
        if len(set(range(n_first)) | published_keyframes(T, interval, 0)) >= g
    ]
    m = 2 * W + n_first
    return max(*enough, math.ceil(max(T - m, r - m) / max(r - m, 1)))


def even_keyframes(T: int, fixed: set[int], count: int, offset: int) -> set[int]:
    free = [f for f in range(T) if f not in fixed]
    return {free[(i * len(free) // count + offset) % len(free)] for i in range(count)}


def even_count(T: int, horizon: int, W: int, n_first: int, fixed: set[int], scale: float) -> int:
    """Keyframes that the budget leaves beside the fixed anchors and a window."""
    r = max(n_first + 1, int(horizon * scale))
    if r >= T:
        return T - len(fixed)
    return min(max(0, r - min(2 * W + 1, T) - len(fixed)), T - len(fixed))


def keyframes(
    placement: str,
    T: int,
    *,
    interval: int | None = None,
    horizon: int | None = None,
    window: int = 3,
    n_first: int = 1,
    scale: float = 1.0,
    rotate: bool = False,
    condition_frames: tuple[int, ...] = (),
    expand_window: bool = True,
) -> list[set[int]]:
    """Keyframes of a placement at each of its offsets, with the package's options."""
    if placement == "published":
        if interval is None:
            interval = published_interval(T, horizon, window, n_first, scale)
        every = [published_keyframes(T, interval, offset) for offset in range(interval)]
    else:
        fixed = set(range(min(n_first, T))) | set(condition_frames)
        free = T - len(fixed)
        if interval is None:
            count = even_count(T, horizon, window, n_first, fixed, scale)
        else:
            count = math.ceil(free / interval)
        period = math.ceil(free / count) if count else 1
        every = [even_keyframes(T, fixed, count, offset) for offset in range(period)]
    return every if rotate else every[:1]


def placed(placement: str, T: int, only: tuple[int, ...] | None = None, **options):
    """Sets A(f) by [offset][f], at every keyframe offset or at those in ``only``."""
    every = keyframes(placement, T, **options)
    fixed = set(options.get("condition_frames", ()))
    return [
        [
            attended_set(
                T,
                options.get("window", 3),
                options.get("n_first", 1),
                every[offset] | fixed,
                f,
                options.get("expand_window", True),
            )
            for f in range(T)
        ]
        for offset in (range(len(every)) if only is None else only)
    ]


def token_mask(sets: list[set[int]], P: int) -> torch.Tensor:
    """[S, S] bool from the attended set of each frame."""
    T = len(sets)
    mask = torch.zeros(T * P, T * P, dtype=torch.bool)
    for f, attended in enumerate(sets):
        for g in attended:
            mask[f * P : (f + 1) * P, g * P : (g + 1) * P] = True
    return mask


def masked_attention(q, k, v, mask=None, scale=None):
    """Dense attention ``[B, S, H, D]`` in float64 with a [S, S] or [B, S, S] mask."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        mask = mask[None] if mask.dim() == 2 else mask
        scores = scores.masked_fill(~mask[:, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
