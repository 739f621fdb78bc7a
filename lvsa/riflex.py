"""RIFLEx: one lowered frequency lets a rotary embedding run past the training length.

Zhao et al., "RIFLEx: A Free Lunch for Length Extrapolation in Video Diffusion Transformers"
(arXiv 2502.15894). Component j = 1 … d/2 of a temporal RoPE of d dimensions turns by θ_j radians
a latent frame and comes back after the period N_j = 2π/θ_j (Eq. 4). A video longer than the period
of one of them, the intrinsic component k, repeats itself. Its frequency is lowered until the whole
video stays within one period, θ'_k ≤ 2π/L_test (Eq. 8); the authors' code
(https://github.com/thu-ml/DiT-Extrapolation, formerly RIFLEx) leaves a tenth to spare, and changes
nothing in a video that is no longer than N_k:

    θ'_k = 0.9 · 2π / L_test    where L_test > N_k

k belongs to a model. The paper proposes the component whose period is nearest the latent frame
where the first repetition is seen (Eq. 7); see `lvsa.adapters.install.ropes` for each model's.

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


def exceeded(frequencies: Tensor, test_frames: float) -> list[int]:
    """Components, counted from 1, whose period a video of this length is longer than.

    Periods are rounded to whole latent frames, as in the authors' code.
    """
    return [j for j, n in enumerate(periods(frequencies).tolist(), 1) if test_frames > round(n)]


def check_component(frequencies: Tensor, k: int) -> None:
    """Stops for a component that is not there.

    Raises:
        LVSAError: names the nearest one.
    """
    if not 1 <= k <= len(frequencies):
        raise LVSAError(
            f"riflex_k is {k}; the temporal rotary embedding has components 1 to "
            f"{len(frequencies)}. Nearest: {1 if k < 1 else len(frequencies)}"
        )


def adjusted_frequencies(frequencies: Tensor, k: int, test_frames: float) -> Tensor:
    """The frequencies with component k low enough for a video of this length.

    They are as they were where the video is no longer than the component's period.

    Args:
        frequencies: ``[dim/2]``, radians per latent frame.
        k: the intrinsic component, counted from 1.
        test_frames: L_test, latent frames of the video.

    Raises:
        LVSAError: for a length that is not a positive number, or a component that is not there.
    """
    if not (test_frames > 0 and math.isfinite(test_frames)):
        raise LVSAError(f"RIFLEx needs a positive number of latent frames; got {test_frames}")
    check_component(frequencies, k)
    adjusted = frequencies.clone()
    if k in exceeded(frequencies, test_frames):
        adjusted[k - 1] = FILLED_PERIOD * 2 * math.pi / test_frames
    return adjusted
