"""Frames that a causal VAE takes one after the other: a few run, the rest are like them.

Wan's VAE keeps a cache of features from frame to frame. Once that is full every frame takes the
same memory and leaves the same, so that a long video costs no more time than a short one.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor, nn

from lvsa.launch.rehearsal.ledger import Ledger
from lvsa.wrapping import wrap_method

CACHE = "feat_cache"
RUN = 5
"""Frames, or groups of them, until the cache is full and the next is like the last."""


def repeat_frames(vae: nn.Module, ledger: Ledger) -> None:
    """Lets encoder and decoder of such a VAE run for its first frames alone; others do nothing."""
    for name in ("encoder", "decoder"):
        half = getattr(vae, name)
        if CACHE in inspect.signature(half.forward).parameters:
            wrap_method(half, "forward", _Repeated(half.forward, ledger))


class _Repeated:
    """A forward that is called for frame after frame."""

    def __init__(self, forward: Callable[..., Tensor], ledger: Ledger) -> None:
        self.forward, self.ledger = forward, ledger
        self.calls = 0
        # By shape of the frames: what a call takes for a while, and the shape that it returns.
        self.known: dict[Size, tuple[int, Size]] = {}

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls = 0 if all(part is None for part in kwargs[CACHE]) else self.calls + 1
        if self.calls >= RUN:
            extra, shape = self.known[x.shape]
            self.ledger.passing(extra)
            return torch.empty(shape, dtype=x.dtype)
        before, outer = self.ledger.bytes, self.ledger.restart()
        result = self.forward(x, *args, **kwargs)
        self.known[x.shape] = self.ledger.peak - before, result.shape
        self.ledger.peak = max(self.ledger.peak, outer)
        return result
