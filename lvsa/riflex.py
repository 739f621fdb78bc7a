"""RIFLEx: one lowered frequency lets a rotary embedding run past the training length.

Zhao et al., "RIFLEx: A Free Lunch for Length Extrapolation in Video Diffusion Transformers"
(arXiv 2502.15894). Component j = 1 … d/2 of a temporal RoPE of d dimensions turns by θ_j radians
a latent frame and comes back after the period N_j = 2π/θ_j. A video longer than the period of the
intrinsic component k repeats itself; k is the one whose period is nearest the frame where the
first repetition is seen:

    k = argmin_j |N_j − N|                                   (Eq. 7)

Its frequency is lowered until the whole video stays within one period, θ'_k ≤ 2π/L_test (Eq. 8),
in the authors' code with a tenth to spare:

    θ'_k = 0.9 · 2π / L_test

Everything here counts latent frames and knows no model.
"""

import math

import torch
from torch import Tensor

from lvsa.errors import LVSAError

# Share of a period that the video may fill.
FILLED_PERIOD = 0.9


def temporal_frequencies(dim: int, base: float) -> Tensor:
    """θ_j = base^(−2(j−1)/dim) of a RoPE axis, radians per latent frame: ``[dim/2]``, float64.

    Args:
        dim: dimensions of the temporal axis, an even number.
        base: of the geometric series, also called theta.
    """
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def periods(frequencies: Tensor) -> Tensor:
    """N_j = 2π/θ_j, latent frames."""
    return 2 * math.pi / frequencies


def intrinsic_index(frequencies: Tensor, length: float) -> int:
    """k, counted from 1: the component whose period is nearest a length (Eq. 7).

    Args:
        frequencies: ``[dim/2]``, radians per latent frame.
        length: latent frames until a video repeats itself, as observed on the model.
    """
    return int((periods(frequencies) - length).abs().argmin()) + 1


def adjusted_frequencies(frequencies: Tensor, k: int, test_frames: float) -> Tensor:
    """The frequencies with component k low enough for a video of this length.

    A component that turns slowly enough already is left as it is: frequencies are lowered, never
    raised.

    Args:
        frequencies: ``[dim/2]``, radians per latent frame.
        k: the intrinsic component, counted from 1.
        test_frames: L_test, latent frames of the video.

    Raises:
        LVSAError: for a length that is not a positive number.
    """
    if not (test_frames > 0 and math.isfinite(test_frames)):
        raise LVSAError(f"RIFLEx needs a positive number of latent frames; got {test_frames}")
    adjusted = frequencies.clone()
    adjusted[k - 1] = adjusted[k - 1].clamp(max=FILLED_PERIOD * 2 * math.pi / test_frames)
    return adjusted
