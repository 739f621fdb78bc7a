"""Attention kernels behind one interface: `(q, k, v, block layout) → (out, lse)`."""

from lvsa.backends.base import Backend
from lvsa.backends.registry import BACKENDS, get_backend, known_backends

__all__ = ["BACKENDS", "Backend", "get_backend", "known_backends"]
