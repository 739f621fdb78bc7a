"""Which frames every query attends: the first frames and spread keyframes.

All numbers are latent frames. Two schedules spread the keyframes:

- ``published``: every ``interval``-th frame, the rule that LVSA was published with;
- ``even``: exactly as many keyframes as the budget leaves, spread evenly over the frames that are
  not anchors already, so that the budget is met at every length and every offset.

Both rotate by one frame each denoising step, with a period of `Pattern.n_offsets` steps.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvsa.errors import LVSAError

Bools = NDArray[np.bool_]


def attention_budget(reference: int, scale: float, n_first: int) -> int:
    """Frames a query may attend: the training horizon times the sparsity scale, rounded down.

    Args:
        reference: the model's training horizon, latent frames.
        scale: sparsity scale; 1.0 attends as many frames as the model was trained on.
        n_first: leading anchor frames; the budget is never smaller than these and one more.
    """
    if reference < 1:
        raise LVSAError(f"reference horizon is {reference} latent frames; it must be at least 1")
    if not 0 < scale < math.inf:
        raise LVSAError(
            f"sparsity scale is {scale}; it must be finite and greater than 0 (1.0 is neutral)"
        )
    return max(n_first + 1, int(reference * scale))


def automatic_interval(
    frames: int, reference: int, window: int, n_first: int, scale: float = 1.0
) -> int:
    """The published keyframe interval for a video of ``frames`` latent frames.

    The larger of two rules, as published: the widest spacing whose anchors (at offset 0) still
    fill what the window leaves of the budget, and a closed form over the same quantities. At or
    below the budget the interval is 1: every frame is an anchor and attention is dense.

    Returns:
        The interval in latent frames, at least 1.
    """
    budget = attention_budget(reference, scale, n_first)
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
    """How many anchors the published schedule has at offset 0."""
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
