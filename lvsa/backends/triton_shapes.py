"""Shapes of the Triton kernel: how much it computes at a time, on which GPU.

Each compiles for its GPUs without spilled registers, at the head dimensions 64, 80, 96, 128 and
256 and in every launch that attention is made of, and into tensor-core instructions but for
float32 above 128 channels: `studies/bench/kernel_resources.py` shows it. What PyTorch measured for
FlexAttention, whose inner loop is the same, was tried first (its defaults in PyTorch 2.13's
torch/_inductor/template_heuristics/triton.py). On no GPU have these shapes been timed.
"""

from typing import NamedTuple

import torch

from lvsa.errors import BackendUnavailable


class KernelShape(NamedTuple):
    """What one program holds at a time.

    Args:
        rows: queries.
        keys: keys, and as many values.
        warps: that share them.
        stages: depth of the pipeline that loads keys and values.
    """

    rows: int
    keys: int
    warps: int
    stages: int


# By generation, then by the largest head dimension that a shape serves and bytes of an element.
# Head dimensions that are padded to 128 take masks, and so more registers than 128 itself.
SHAPES: dict[str, dict[tuple[int, int], KernelShape]] = {
    "sm_80": {
        (64, 2): KernelShape(128, 64, 8, 3),
        (127, 2): KernelShape(128, 32, 8, 3),
        (128, 2): KernelShape(128, 64, 8, 3),
        (256, 2): KernelShape(64, 32, 8, 2),
        (64, 4): KernelShape(64, 16, 4, 2),
        (127, 4): KernelShape(32, 16, 8, 2),
        (128, 4): KernelShape(32, 16, 8, 2),
        (256, 4): KernelShape(32, 16, 8, 2),
    },
    "sm_90": {
        (64, 2): KernelShape(128, 64, 8, 3),
        (127, 2): KernelShape(128, 64, 8, 3),
        (128, 2): KernelShape(128, 64, 8, 3),
        (256, 2): KernelShape(64, 32, 8, 3),
        (64, 4): KernelShape(128, 32, 8, 2),
        (127, 4): KernelShape(32, 16, 8, 2),
        (128, 4): KernelShape(32, 16, 8, 2),
        (256, 4): KernelShape(32, 16, 8, 2),
    },
    "sm_100": {
        (64, 2): KernelShape(128, 64, 8, 3),
        (127, 2): KernelShape(128, 64, 8, 3),
        (128, 2): KernelShape(128, 64, 8, 3),
        (256, 2): KernelShape(64, 32, 8, 3),
        (64, 4): KernelShape(64, 16, 4, 2),
        (127, 4): KernelShape(32, 16, 8, 2),
        (128, 4): KernelShape(32, 16, 8, 2),
        (256, 4): KernelShape(32, 16, 8, 2),
    },
    "sm_120": {
        (64, 2): KernelShape(128, 64, 8, 3),
        (127, 2): KernelShape(128, 32, 8, 3),
        (128, 2): KernelShape(128, 32, 8, 3),
        (256, 2): KernelShape(64, 32, 8, 2),
        (64, 4): KernelShape(64, 16, 4, 2),
        (127, 4): KernelShape(32, 16, 8, 2),
        (128, 4): KernelShape(32, 16, 8, 2),
        (256, 4): KernelShape(32, 16, 8, 2),
    },
    "gfx942": {
        (64, 2): KernelShape(64, 64, 8, 2),
        (127, 2): KernelShape(64, 64, 8, 2),
        (128, 2): KernelShape(64, 64, 8, 2),
        (256, 2): KernelShape(64, 32, 8, 2),
        (64, 4): KernelShape(128, 32, 4, 1),
        (127, 4): KernelShape(64, 32, 4, 1),
        (128, 4): KernelShape(64, 32, 4, 1),
        (256, 4): KernelShape(64, 16, 8, 1),
    },
    "interpreter": {
        (most, size): KernelShape(128, 128, 4, 1) for most in (64, 127, 128, 256) for size in (2, 4)
    },
}
# Which GPUs run the shapes of which generation. Those of sm_80 and sm_120 keep to the 99 KiB of
# shared memory that consumer cards give a program.
GENERATIONS = {
    "sm_80": "sm_80",
    "sm_86": "sm_80",
    "sm_89": "sm_80",
    "sm_90": "sm_90",
    "sm_100": "sm_100",
    "sm_103": "sm_100",
    "sm_120": "sm_120",
    "gfx942": "gfx942",
    "interpreter": "interpreter",
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_CHANNELS = 256


def nvidia(capability: tuple[int, int]) -> str:
    """Architecture of an NVIDIA GPU."""
    return "sm_{}{}".format(*capability)


def architecture(device: torch.device) -> str:
    """Architecture of a GPU, a key of `GENERATIONS`.

    Raises:
        BackendUnavailable: for a device that the kernel has no shapes for.
    """
    if device.type != "cuda":
        raise BackendUnavailable(
            f"backend 'triton' runs on CUDA and ROCm, not on {device.type}; use --backend sdpa. "
            "(Triton's interpreter runs it on the CPU with TRITON_INTERPRET=1, to test it)"
        )
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        name = nvidia(torch.cuda.get_device_capability(device))
    if name not in GENERATIONS:
        known = ", ".join(other for other in GENERATIONS if other != "interpreter")
        raise BackendUnavailable(
            f"backend 'triton' has no shapes for {name}, but for {known}; use --backend sdpa"
        )
    return name


def takes(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel takes such tensors."""
    return dtype in DTYPES and head_dim <= MOST_CHANNELS


def padded(head_dim: int) -> int:
    """Channels that a program holds: a power of 2, and what tensor cores take at least."""
    return max(16, 1 << (head_dim - 1).bit_length())


def shape_for(target: str, dtype: torch.dtype, head_dim: int) -> KernelShape:
    """The kernel's shape for tensors like these.

    Args:
        target: a key of `GENERATIONS`.
        dtype, head_dim: of queries, keys and values.

    Raises:
        BackendUnavailable: for a dtype or a head dimension that the kernel does not take.
    """
    if not takes(dtype, head_dim):
        raise BackendUnavailable(
            f"backend 'triton' takes {', '.join(map(str, DTYPES))} and head dimensions up to "
            f"{MOST_CHANNELS}, not {dtype} with head dimension {head_dim}; use --backend math"
        )
    shapes = SHAPES[GENERATIONS[target]]
    most = min(most for most, size in shapes if size == dtype.itemsize and head_dim <= most)
    return shapes[most, dtype.itemsize]


def precision(target: str, head_dim: int) -> str:
    """How float32 is multiplied, an `input_precision` of tl.dot.

    On NVIDIA as three products of TF32, which lose 2 to 3 of float32's 24 bits and run on tensor
    cores. Above 128 channels they need more registers than there are: there, and elsewhere, the
    products are IEEE's.
    """
    return "tf32x3" if target.startswith("sm_") and padded(head_dim) <= 128 else "ieee"
