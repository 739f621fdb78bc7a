"""Patterns as masks of tokens, for dense attention under a mask."""

import numpy as np
import torch

from lvsa.pattern import Pattern


def token_mask(pattern: Pattern, step: int, tokens_per_frame: int) -> torch.Tensor:
    """``[T·P, T·P]``: which token attends which at a denoising step."""
    matrix = pattern.attended[pattern.offset(step)]
    return torch.from_numpy(np.kron(matrix, np.ones((tokens_per_frame,) * 2, dtype=bool)))
