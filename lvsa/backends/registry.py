"""Backends by name. What is asked for is what runs: nothing is substituted."""

from collections.abc import Callable

import torch

from lvsa.backends.base import Backend
from lvsa.errors import LVSAError


def _sdpa(device: torch.device) -> Backend:
    from lvsa.backends.sdpa import SDPABackend

    return SDPABackend()


BACKENDS: dict[str, Callable[[torch.device], Backend]] = {
    "sdpa": _sdpa,
}


def get_backend(name: str, device: torch.device | str = "cpu") -> Backend:
    """A backend by name.

    Args:
        name: one of `BACKENDS`.
        device: where the tensors will be.

    Raises:
        LVSAError: for an unknown name; lists the known ones.
        BackendUnavailable: where the kernel is known but cannot run on this device.
    """
    if name not in BACKENDS:
        raise LVSAError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[name](torch.device(device))
