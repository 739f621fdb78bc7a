"""Muon for weight matrices and kernels: the update is the orthogonal matrix nearest to momentum.

Short runs of small models need few steps with it. After Jordan et al., "Muon: an optimizer for
hidden layers in neural networks" (2024); the scale of the update is set to AdamW's, after Liu et
al., "Muon is scalable for LLM training" (2025).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration that brings singular values near 1 in five rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalised(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The matrix ``[M, N]`` with its singular values brought to between about 0.7 and 1.2."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Muon over parameters of two or more dimensions; kernels count as ``[out, in·k]`` matrices."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                kept = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(kept, group["momentum"]).flatten(1)
                scale = 0.2 * max(ahead.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = orthogonalised(ahead).view_as(parameter)
                parameter.add_(update, alpha=-group["lr"] * scale)


def optimisers(
    named: Iterable[tuple[str, Tensor]], rate: float, weight_decay: float, plain: tuple[str, ...]
) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels, AdamW for the rest.

    ``plain`` names what AdamW takes though it is a matrix: embeddings and the like.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in named:
        matrix = parameter.ndim >= 2 and parameter.flatten(1).shape[1] > 1
        matrix = matrix and parameter.shape[0] > 1 and not any(part in name for part in plain)
        (matrices if matrix else rest).append(parameter)
    return [
        Muon(matrices, lr=rate, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
