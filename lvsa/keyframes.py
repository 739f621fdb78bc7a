"""LVSA's own patterns: first frames, spread keyframes and a local window.

All numbers are latent frames. Two placements spread the keyframes:

- `published`: every ``interval``-th frame, the rule that LVSA was published with;
- `even`: exactly as many keyframes as the budget leaves, spread evenly over the frames that are
  not anchors already, so that the budget is met at every length and every offset.

Both move by one frame each denoising step where they rotate. (LVSA: see NOTICE.)
"""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal, TypedDict, Unpack

import numpy as np

from lvsa.errors import LVSAError
from lvsa.pattern import MOST_FRAMES, Bools, FrameMatrices, Ints, Pattern, check_frames

Placement = Literal["published", "even"]


class PatternOptions(TypedDict, total=False):
    """What both placements take.

    horizon: the model's training length, for the automatic number of keyframes; or
    interval: one keyframe for so many frames. One of the two must be given.
    window: half-width W of the local window; a frame sees up to 2W + 1 frames around it (3).
    n_first: leading frames that everybody attends (1).
    scale: attended frames as a multiple of the horizon (1.0).
    rotate: whether keyframes move by one frame each denoising step (False).
    expand_window: grow each window until it holds 2W + 1 frames that are not anchors (True).
    condition_frames: further frames that everybody attends (image or video conditioning).
    """

    horizon: int | None
    interval: int | None
    window: int
    n_first: int
    scale: float
    rotate: bool
    expand_window: bool
    condition_frames: tuple[int, ...]


DEFAULTS: PatternOptions = {
    "horizon": None,
    "interval": None,
    "window": 3,
    "n_first": 1,
    "scale": 1.0,
    "rotate": False,
    "expand_window": True,
    "condition_frames": (),
}


def published(frames: int, **options: Unpack[PatternOptions]) -> Pattern:
    """Keyframes every ``interval`` frames, or by the automatic rule from the ``horizon``.

    Args:
        frames: T, latent frames of the video.
        options: see `PatternOptions`.

    Raises:
        LVSAError: for a number out of range, or both or none of horizon and interval.
    """
    o = _checked(frames, options)
    interval = o["interval"]
    if interval is None:
        assert o["horizon"] is not None
        interval = automatic_interval(frames, o["horizon"], o["window"], o["n_first"], o["scale"])
    fixed = fixed_anchors(frames, o)
    anchors = np.stack(
        [published_keyframes(frames, interval, k) for k in range(interval if o["rotate"] else 1)]
    )
    return _pattern("published", f"a keyframe every {interval} frames", anchors, fixed, interval, o)


def even(frames: int, **options: Unpack[PatternOptions]) -> Pattern:
    """Exactly as many keyframes as the budget leaves, or one for each ``interval`` frames.

    Args:
        frames: T, latent frames of the video.
        options: see `PatternOptions`.

    Raises:
        LVSAError: for a number out of range, or both or none of horizon and interval.
    """
    o = _checked(frames, options)
    fixed = fixed_anchors(frames, o)
    free = frames - len(fixed)
    if o["interval"] is not None:
        count = -(-free // o["interval"])
    else:
        assert o["horizon"] is not None
        budget = attention_budget(o["horizon"], o["scale"], o["n_first"])
        count = even_count(frames, budget, o["window"], len(fixed))
    period = -(-free // count) if count else 1
    anchors = np.stack(
        [even_keyframes(frames, fixed, count, k) for k in range(period if o["rotate"] else 1)]
    )
    return _pattern("even", f"{count} keyframes, evenly spread", anchors, fixed, period, o)


PLACEMENTS = {"published": published, "even": even}


def _checked(frames: int, options: PatternOptions) -> PatternOptions:
    """The options with their defaults."""
    unknown = [name for name in options if name not in DEFAULTS]
    if unknown:
        raise TypeError(f"a pattern takes no {', '.join(unknown)}; it takes {', '.join(DEFAULTS)}")
    o: PatternOptions = {**DEFAULTS, **options}
    check_frames(frames)
    if (o["interval"] is None) == (o["horizon"] is None):
        raise LVSAError("give either an interval or a training horizon, in latent frames")
    for name, value, low in (
        ("window", o["window"], 0),
        ("n_first", o["n_first"], 0),
        ("interval", 1 if o["interval"] is None else o["interval"], 1),
    ):
        if not low <= value <= MOST_FRAMES:
            bound = f"at least {low}" if value < low else f"at most {MOST_FRAMES:,}"
            raise LVSAError(f"{name} is {value} latent frames; it must be {bound}")
    outside = [f for f in o["condition_frames"] if not 0 <= f < frames]
    if outside:
        raise LVSAError(
            f"condition frames {outside} are not latent frames of this video; "
            f"allowed: 0 … {frames - 1}"
        )
    return o


def fixed_anchors(frames: int, options: PatternOptions) -> tuple[int, ...]:
    """Anchors that do not move: the first frames and the conditioning frames."""
    first = range(min(options["n_first"], frames))
    return tuple(sorted({*first, *options["condition_frames"]}))


def _pattern(
    placement: Placement,
    spread: str,
    keyframes: Bools,
    fixed: tuple[int, ...],
    interval: int,
    o: PatternOptions,
) -> Pattern:
    """Anchors and windows together; the matrix of each offset is made when it is asked for."""
    anchors = keyframes
    anchors[:, list(fixed)] = True
    n_offsets, T = anchors.shape
    frame = np.arange(T)

    def attended(offset: int) -> Bools:
        low, high = window_bounds(anchors[offset], o["window"], o["expand_window"])
        matrix = frame >= low[:, None]
        matrix &= frame <= high[:, None]
        matrix |= anchors[offset]
        return matrix

    moves = f", moving each step ({n_offsets} offsets)" if n_offsets > 1 else ""
    conditions = sorted({*o["condition_frames"]})
    given = f", conditioning frames {', '.join(map(str, conditions))}" if conditions else ""
    return Pattern(
        FrameMatrices(n_offsets, T, attended),
        fixed,
        f"{o['n_first']} first, {spread}{moves}; window ±{o['window']}{given} (latent frames)",
        MappingProxyType(
            {
                "keyframe_placement": placement,
                "interval": interval,
                "window": o["window"],
                "first_frames": o["n_first"],
                "condition_frames": conditions,
            }
        ),
    )


def window_bounds(anchors: Bools, window: int, expand: bool = True) -> tuple[Ints, Ints]:
    """First and last frame of every frame's window at one offset, each ``[T]``.

    The adaptive bounds slide inwards at the ends of the video. Expanded windows then take one
    frame left and one right, in turn, until they hold min(2W + 1, T − |G|) frames that are not
    anchors; the number of turns is found by bisection, for all frames at once.

    Args:
        anchors: ``[T]``.
        window: W.
        expand: whether to grow at all.
    """
    T, W = len(anchors), window
    frame = np.arange(T, dtype=np.int64)
    low = np.maximum(0, np.minimum(frame - W, T - 1 - 2 * W))
    high = np.minimum(T - 1, np.maximum(frame + W, 2 * W))
    if not expand:
        return low, high
    free = np.concatenate([np.zeros(1, np.int64), (~anchors).cumsum(dtype=np.int64)])
    wanted = min(2 * W + 1, int(free[-1]))

    def grown(turns: Ints) -> tuple[Ints, Ints]:
        return np.maximum(0, low - (turns + 1) // 2), np.minimum(T - 1, high + turns // 2)

    enough, too_few = np.full_like(low, 2 * T), np.full_like(low, -1)
    while (enough - too_few > 1).any():
        middle = (enough + too_few) // 2
        first, last = grown(middle)
        holds = free[last + 1] - free[first] >= wanted
        enough, too_few = np.where(holds, middle, enough), np.where(holds, too_few, middle)
    return grown(enough)


def attention_budget(horizon: int, scale: float, n_first: int) -> int:
    """Frames a query may attend: the training horizon times the sparsity scale, rounded down.

    Args:
        horizon: the model's training horizon, latent frames.
        scale: sparsity scale; 1.0 attends as many frames as the model was trained on.
        n_first: leading anchor frames; the budget is never smaller than these and one more.
    """
    if horizon < 1:
        raise LVSAError(f"training horizon is {horizon} latent frames; it must be at least 1")
    if not 0 < scale < math.inf:
        raise LVSAError(
            f"sparsity scale is {scale}; it must be finite and greater than 0 (1.0 is neutral)"
        )
    return max(n_first + 1, int(horizon * scale))


def automatic_interval(
    frames: int, horizon: int, window: int, n_first: int, scale: float = 1.0
) -> int:
    """The published keyframe interval for a video of ``frames`` latent frames.

    The larger of two rules, as published: the widest spacing whose anchors (at offset 0) still
    fill what the window leaves of the budget, and a closed form over the same quantities. At or
    below the budget the interval is 1: every frame is an anchor and attention is dense.

    Returns:
        The interval in latent frames, at least 1.
    """
    budget = attention_budget(horizon, scale, n_first)
    if frames <= budget:
        return 1
    wanted = max(n_first, budget - min(2 * window + 1, frames))
    strict = max(
        interval
        for interval in range(1, frames + 1)
        if interval == 1 or _published_count(frames, n_first, interval) >= wanted
    )
    local = 2 * window + n_first
    closed = math.ceil(max(frames - local, budget - local) / max(budget - local, 1))
    return max(strict, closed)


def _published_count(frames: int, n_first: int, interval: int) -> int:
    """How many anchors the published placement has at offset 0."""
    first = min(n_first, frames)
    return first + math.ceil(frames / interval) - math.ceil(first / interval)


def published_keyframes(frames: int, interval: int, offset: int) -> Bools:
    """``[T]``: frames (offset + i·interval) mod T for 0 ≤ i < ceil(T / interval)."""
    if interval < 1:
        raise LVSAError(f"keyframe interval is {interval} latent frames; it must be at least 1")
    keyframes = np.zeros(frames, dtype=np.bool_)
    keyframes[(offset + np.arange(math.ceil(frames / interval)) * interval) % frames] = True
    return keyframes


def even_keyframes(frames: int, fixed: Sequence[int], count: int, offset: int) -> Bools:
    """``[T]``: ``count`` keyframes spread evenly over the frames that are not in ``fixed``.

    Position i of ``count`` stands at floor(i·M / count) + offset (mod M) among the M frames that
    remain. The spread skips the fixed anchors, so no keyframe is lost to one of them and the
    number attended is the same for every offset.
    """
    free = np.setdiff1d(np.arange(frames), np.asarray(list(fixed), dtype=np.int64))
    if count > len(free):
        raise LVSAError(f"{count} keyframes asked for, only {len(free)} frames are free for them")
    keyframes = np.zeros(frames, dtype=np.bool_)
    if count:
        spread = np.arange(count) * len(free) // count
        keyframes[free[(spread + offset) % len(free)]] = True
    return keyframes


def even_count(frames: int, budget: int, window: int, n_fixed: int) -> int:
    """Keyframes that fill the budget beside ``n_fixed`` anchors and a full window."""
    if frames <= budget:
        return frames - n_fixed
    return min(max(0, budget - min(2 * window + 1, frames) - n_fixed), frames - n_fixed)
