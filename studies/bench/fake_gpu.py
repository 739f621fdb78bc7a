"""A GPU that is not there: CUDA tensors with shapes, dtypes, strides and devices, and no data.

PyTorch's fake tensors take a CUDA device on a build without CUDA. Some calls ask the device's
runtime before they reach the dispatcher (indexing, ``copy_``, ``contiguous``, ``to``), and some
choose their kernel by how PyTorch was built (attention, RMS norms): they are put in other words
here, in those that a CUDA build would use.

Where a model asks for values, `lvsa.launch.rehearsal.values` answers.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lvsa.launch.rehearsal.values import Masks, is_mask, picked

aten = torch.ops.aten
CUDNN = 91501
"""The cuDNN that a fake GPU has: new enough for whatever asks."""


class WithoutRuntime(TorchFunctionMode):
    """Calls that would ask CUDA's runtime, through operators that fake tensors know."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__:
            return index(*args)
        if function is Tensor.__setitem__:
            target, value = index(*args[:2]), args[2]
            return _copy(target, value) if isinstance(value, Tensor) else target.fill_(value)
        if function is Tensor.copy_:
            return _copy(*args)
        if function is Tensor.contiguous:
            x = args[0]
            return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)
        if function is Tensor.to and torch.device("cuda") in (*args, *kwargs.values()):
            return _on_cuda(args[0], args[1:], kwargs)
        if function is nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if function in (torch.rms_norm, nn.functional.rms_norm):
            return _rms_norm(*args, **kwargs)
        return function(*args, **kwargs)


_copy = aten.copy_.default


def _on_cuda(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    dtypes = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    dtype = dtypes[0] if dtypes else x.dtype
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="cuda")


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention; memory-efficient attention with a mask or in float32."""
    qkv = query, key, value
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return aten._scaled_dot_product_flash_attention(*qkv, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return aten._scaled_dot_product_efficient_attention(*qkv, attn_mask, False, scale=scale)[0]


@torch.library.custom_op("fake_gpu::rms_norm", mutates_args=())
def _fused_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The kernel of a CUDA build, which a build without CUDA takes apart."""
    raise NotImplementedError


@_fused_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return torch.empty_like(x)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """One launch where input and weight have one dtype, as in PyTorch's `rms_norm_symint`."""
    if weight is not None and weight.dtype != input.dtype:
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return torch.ops.fake_gpu.rms_norm(input, weight, eps or 0.0)


def index(x: Tensor, indices: Any) -> Tensor:
    """``x[indices]`` for slices, integers, None and one ellipsis, or for one mask."""
    if is_mask(indices):
        return picked(x, indices)
    items = list(indices) if isinstance(indices, tuple) else [indices]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        given = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (x.dim() - given)
    dim = 0
    for item in items:
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            start, stop, step = item.indices(x.shape[dim])
            x = aten.slice(x, dim, start, stop, step)
        else:
            x = aten.select(x, dim, item)
            continue
        dim += 1
    return x


@contextmanager
def fake_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[FakeTensorMode]:
    """A block in which tensors can be made on the device ``cuda``, and Triton launches nothing.

    Args:
        capability: compute capability of the GPU.
    """
    facts = {
        (torch.cuda, "get_device_capability"): lambda device=None: capability,
        (torch.cuda, "device"): lambda device=None: nullcontext(),
        (torch.backends.cudnn, "version"): lambda: CUDNN,
    }
    with ExitStack() as stack:
        for (module, name), fact in facts.items():
            stack.enter_context(patch.object(module, name, fact))
        stack.enter_context(triton_launches(lambda kernel, tensors: None))
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Masks())
        stack.enter_context(WithoutRuntime())
        yield mode


@contextmanager
def triton_launches(note: Any) -> Iterator[None]:
    """A block in which Triton's launches go to ``note(kernel, tensors)`` instead of a GPU.

    ``kernel[grid](…)`` ends in the ``run`` of Triton's two kinds of functions: those for GPUs, and
    those of its interpreter.
    """
    if find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        note(self.fn.__name__, [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])

    with patch.object(JITFunction, "run", run), patch.object(InterpretedFunction, "run", run):
        yield
