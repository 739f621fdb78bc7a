"""The SDPA backend: PyTorch's own fused kernels, on CPU, NVIDIA and AMD GPUs.

Which of them runs is a rule of device, dtype and head dimension, `choose_kernel`, unless one is
asked for by name: ``sdpa:flash``, ``sdpa:cudnn``, ``sdpa:efficient``, or ``sdpa:fa3`` and
``sdpa:fa4``, the FlashAttention 3 and 4 of the package flash-attn in the place of PyTorch's own.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import attention

from lvsa.backends.tile_by_tile import GATHER_BYTES, Kernel, TileBackend
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.merge import AttentionState

HALF = (torch.float16, torch.bfloat16)
CUDNN_SINCE = 91500
"""The cuDNN after which PyTorch itself prefers it, from `check_prefer_cudnn_attention` in its
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: lengths off multiples of 128 were wrong."""
FLASH_IMPLEMENTATIONS = {
    # name → PyTorch's name, major compute capabilities, module, from torch/nn/attention/_fa{3,4}.py
    "fa3": ("FA3", (9,), "flash_attn_interface"),
    "fa4": ("FA4", (9, 10), "flash_attn.cute.interface"),
}
KERNELS = ("flash", "cudnn", "efficient", *FLASH_IMPLEMENTATIONS)


class Device(NamedTuple):
    """What decides about kernels on a device.

    Args:
        type: as PyTorch calls it.
        capability: of an NVIDIA GPU, as (9, 0); None elsewhere.
        cudnn: version of cuDNN as 91501; 0 without it.
    """

    type: str
    capability: tuple[int, int] | None = None
    cudnn: int = 0

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """The facts about a device of this machine."""
        if device.type != "cuda" or torch.version.hip:
            return cls(device.type)
        capability = torch.cuda.get_device_capability(device)
        return cls("cuda", capability, torch.backends.cudnn.version() or 0)

    def __str__(self) -> str:
        if self.capability is None:
            return self.type
        major, minor = self.capability
        return f"{self.type} sm_{major}{minor}"


class SDPABackend(TileBackend):
    """Block-sparse attention out of calls to PyTorch's fused dense kernels.

    Args:
        kernel: name of one of `KERNELS`, on GPUs; the rule decides without it.
        gather_bytes: most bytes of gathered copies at a time.
        device: facts about the device of the tensors; asked for in each call without it.

    Raises:
        LVSAError: for a kernel of another name.
        BackendUnavailable: for FlashAttention 3 or 4 where it is not installed.
    """

    name = "sdpa"

    def __init__(
        self,
        kernel: str | None = None,
        gather_bytes: int = GATHER_BYTES,
        device: Device | None = None,
    ) -> None:
        super().__init__(gather_bytes)
        if kernel is not None and kernel not in KERNELS:
            raise LVSAError(f"backend 'sdpa' has no kernel {kernel!r}; known: {', '.join(KERNELS)}")
        self.kernel, self.device = kernel, device
        if kernel in FLASH_IMPLEMENTATIONS:
            _activate(kernel)

    @classmethod
    def on(cls, device: torch.device, kernel: str | None = None) -> Self:
        if device.type not in ("cpu", "cuda"):
            raise BackendUnavailable(
                f"backend 'sdpa' runs on cpu and cuda, not on {device.type}; the backend 'math' "
                "runs anywhere"
            )
        return cls(kernel, device=Device.of(device))

    def check(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        name, reason = choose_kernel(Device.of(device), dtype, head_dim, self.kernel)
        return f"{self.name}: {name}, {reason}"

    def kernel_for(self, q_BLHD: Tensor) -> Kernel:
        device = self.device or Device.of(q_BLHD.device)
        name, _ = choose_kernel(device, q_BLHD.dtype, q_BLHD.shape[-1], self.kernel)
        return _KERNELS[name]


def choose_kernel(
    device: Device, dtype: torch.dtype, head_dim: int, asked: str | None = None
) -> tuple[str, str]:
    """Name of the kernel with a log-sum-exp for such queries, and why it is this one.

    Raises:
        BackendUnavailable: where PyTorch has none, or the one that was asked for does not fit.
    """
    fits = kernels_that_fit(device, dtype, head_dim)
    if asked is not None:
        if asked not in fits:
            raise BackendUnavailable(
                f"backend 'sdpa:{asked}' has no kernel for {dtype} with head dimension {head_dim} "
                f"on {device}; there: {', '.join(fits) or 'none'}"
            )
        return asked, "asked for by name"
    if not fits:
        near = "float16 has kernels there, " if dtype == torch.bfloat16 else ""
        raise BackendUnavailable(
            f"backend 'sdpa' has no kernel with a log-sum-exp for {dtype} with head dimension "
            f"{head_dim} on {device}; {near}the backend 'math' takes any"
        )
    name = next(iter(fits))
    return name, fits[name]


def kernels_that_fit(device: Device, dtype: torch.dtype, head_dim: int) -> dict[str, str]:
    """Kernels by name, best first, each with what speaks for it."""
    if device.type == "cpu" and dtype.is_floating_point:
        return {"cpu": "PyTorch's flash attention for CPUs"}
    if device.type != "cuda" or head_dim > 256:
        return {}
    if device.capability is None:  # AMD: AOTriton serves both dtypes
        return {"flash": "AOTriton"} if dtype in HALF else {}
    if dtype == torch.float32:
        return {"efficient": "the only one that takes float32"}
    if dtype not in HALF:
        return {}
    major, minor = device.capability
    if major < 8:
        older = {"efficient": "flash attention begins with sm_80"}
        return older if dtype == torch.float16 else {}
    fits = {"flash": "FlashAttention 2", "efficient": "memory-efficient attention"}
    if head_dim % 8 == 0 and head_dim <= 128 and device.cudnn >= 90000:
        cudnn = {"cudnn": "PyTorch prefers it on sm_90 and sm_100"}
        preferred = major in (9, 10) and minor in (0, 3) and device.cudnn > CUDNN_SINCE
        fits = cudnn | fits if preferred else fits | cudnn
    for name, (_, majors, _) in FLASH_IMPLEMENTATIONS.items():
        if major in majors:
            fits[name] = "FlashAttention of the package flash-attn"
    return fits


def _activate(kernel: str) -> None:
    """Puts FlashAttention 3 or 4 in the place of PyTorch's flash kernel, for this process."""
    implementation, _, module = FLASH_IMPLEMENTATIONS[kernel]
    activate = getattr(attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise BackendUnavailable(
            f"backend 'sdpa:{kernel}' needs a PyTorch with activate_flash_attention_impl; this is "
            f"{torch.__version__}"
        )
    try:
        activate(implementation)
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'sdpa:{kernel}' needs the module {module} of flash-attn: {error}"
        ) from error


def _cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_heads_first(q, k, v), scale=scale
    )
    return AttentionState(out.transpose(1, 2), lse)


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
        *_heads_first(*_padded(8, q, k, v)), scale=scale
    )[:2]
    return AttentionState(out.transpose(1, 2)[..., : q.shape[-1]], lse)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
    if k.shape[1] == 1:
        # cuDNN does not take a single key (`check_cudnn_tensor_shapes`).
        return _flash(q, k, v, scale)
    out, lse_BHL1 = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *_heads_first(q, k, v), attn_bias=None, compute_log_sumexp=True, scale=scale
    )[:2]
    return AttentionState(out.transpose(1, 2), lse_BHL1.squeeze(-1))


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> AttentionState:
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
        *_heads_first(*_padded(8, q, k, v)), attn_bias=None, compute_log_sumexp=True, scale=scale
    )[:2]
    # The kernel pads its rows of log-sum-exp to a multiple of 32.
    return AttentionState(out.transpose(1, 2)[..., : q.shape[-1]], lse[..., : q.shape[1]])


_KERNELS: dict[str, Kernel] = {
    "cpu": _cpu,
    "flash": _flash,
    "cudnn": _cudnn,
    "efficient": _efficient,
    "fa3": _flash,
    "fa4": _flash,
}


def _heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def _padded(multiple: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Head dimensions filled up to a multiple; zeros change no score."""
    missing = -tensors[0].shape[-1] % multiple
    if not missing:
        return tensors
    return tuple(torch.nn.functional.pad(x, (0, missing)) for x in tensors)
