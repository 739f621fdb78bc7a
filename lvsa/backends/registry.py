"""Backends by name. What is asked for is what runs: nothing is substituted."""

from collections.abc import Callable

from lvsa.backends.base import Backend
from lvsa.errors import LVSAError


def _sdpa() -> Backend:
    from lvsa.backends.sdpa import SDPABackend

    return SDPABackend()


BACKENDS: dict[str, Callable[[], Backend]] = {
    "sdpa": _sdpa,
}


def get_backend(name: str) -> Backend:
    """A backend by name.

    Raises:
        LVSAError: for an unknown name; lists the known ones.
        BackendUnavailable: where the kernel is known but cannot run here.
    """
    if name not in BACKENDS:
        raise LVSAError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[name]()
