"""Attention kernels behind one interface: `(q, k, v, block layout) → (out, lse)`."""

from lvsa.backends.base import Backend
from lvsa.backends.registry import BACKENDS, get_backend

__all__ = ["BACKENDS", "Backend", "get_backend"]
