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
