"""What every hook does: reads the arguments of its transformer's forward before it runs."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lvsa.serving.vllm_omni.request import publish
from lvsa.shards import FrameGrid

Read = Callable[[Any, Mapping[str, Any]], tuple[FrameGrid, Tensor]]
"""(transformer, arguments of its forward by name) → grid of the video's tokens, timestep."""


def watch(transformer_class: type[nn.Module], read: Read) -> None:
    """Lets every forward of a class say what it works on; a second call does nothing."""
    forward = transformer_class.forward
    if hasattr(forward, "lvsa_read"):
        return
    signature = inspect.signature(forward)

    @torch.compiler.disable
    def tell(transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        publish(*read(transformer, signature.bind(transformer, *args, **kwargs).arguments))

    @functools.wraps(forward)
    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tell(self, args, kwargs)
        return forward(self, *args, **kwargs)

    watched.lvsa_read = read  # type: ignore[attr-defined]
    transformer_class.forward = watched
