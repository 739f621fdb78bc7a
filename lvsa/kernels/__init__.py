"""Triton kernels for what attention does beside attention: rotation, and merging of states.

Each computes what a few PyTorch operations do elsewhere, in one launch that reads and writes every
element once. `lvsa.rope` and `lvsa.merge` call them, and hold the operations that they stand for.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

INSTALLED = find_spec("triton") is not None


def fused(x: Tensor) -> bool:
    """Whether kernels of Triton take such a tensor: on CUDA or ROCm, where Triton is installed.

    Not where gradients are asked for: kernels have none, and operations would refuse them later.
    """
    return INSTALLED and x.is_cuda and not (torch.is_grad_enabled() and x.requires_grad)
