"""Muon for weight matrices and kernels: the update is the orthogonal matrix nearest to momentum.

Short runs of small models need few steps with it. After Jordan et al., "Muon: an optimizer for
hidden layers in neural networks" (2024); the scale of the update is set to AdamW's, after Liu et
al., "Muon is scalable for LLM training" (2025).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration that brings singular values near 1 in five rounds."""


@torch.no_grad()
def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Matrices ``[..., M, N]`` with their singular values brought to between about 0.7 and 1.2.

    Computes in bfloat16, whose error is far below that range's width.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    a, b, c = QUINTIC
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


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
        """Updates all parameters by their gradients; ``closure`` is not called."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            # Matrices of one shape go through the iteration together: few large products.
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                kept = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(kept, group["momentum"]).flatten(1)
                stacks.setdefault(ahead.shape, []).append((parameter, ahead))
            for shape, members in stacks.items():
                updates = orthogonalized(torch.stack([ahead for _, ahead in members]))
                scale = 0.2 * max(shape) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - rate * decay)
                    parameter.add_(update.reshape(parameter.shape), alpha=-rate * scale)


def optimizers(
    named: Iterable[tuple[str, Tensor]], rate: float, weight_decay: float, adamw: tuple[str, ...]
) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels, and AdamW for the rest.

    Args:
        named: parameters with their names.
        rate: learning rate.
        weight_decay: of Muon.
        adamw: parts of names whose parameters go to AdamW although they are matrices.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in named:
        matrix = parameter.ndim >= 2 and parameter.flatten(1).shape[1] > 1
        matrix = matrix and parameter.shape[0] > 1 and not any(part in name for part in adamw)
        (matrices if matrix else rest).append(parameter)
    return [
        Muon(matrices, lr=rate, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
