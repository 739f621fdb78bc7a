"""Backends by name. What is asked for is what runs: nothing is substituted.

Other packages add backends under the entry-point group ``lvsa.backends``; nothing is imported
before it is asked for.
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from lvsa.backends.base import Backend
from lvsa.errors import LVSAError

GROUP = "lvsa.backends"
BACKENDS: dict[str, str] = {
    # name → module:class
    "auto": "lvsa.backends.choice:AutoBackend",
    "sdpa": "lvsa.backends.sdpa:SDPABackend",
    "triton": "lvsa.backends.triton_backend:TritonBackend",
    "flashinfer": "lvsa.backends.flashinfer_backend:FlashInferBackend",
    "npu": "lvsa.backends.ascend:AscendBackend",
    "math": "lvsa.backends.plain:MathBackend",
}


def known_backends() -> list[str]:
    """Names of all backends, built in and installed."""
    return [*BACKENDS, *sorted(_third_party())]


def get_backend(name: str, device: torch.device | str = "cpu") -> Backend:
    """A backend by name.

    Args:
        name: one of `known_backends`; after a colon, one of its kernels, as in ``sdpa:flash``.
        device: where the tensors will be.

    Raises:
        LVSAError: for an unknown name; lists the known ones.
        BackendUnavailable: where the kernel is known but cannot run on this device.
    """
    backend, _, kernel = name.partition(":")
    return _backend_class(backend).on(torch.device(device), kernel or None)


def _backend_class(name: str) -> type[Backend]:
    if name in BACKENDS:
        module, _, attribute = BACKENDS[name].partition(":")
        found: Any = getattr(import_module(module), attribute)
    elif name in (third_party := _third_party()):
        found = third_party[name].load()
    else:
        raise LVSAError(f"unknown backend {name!r}; known: {', '.join(known_backends())}")
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise LVSAError(f"backend {name!r} is {found!r}, not a class of backends")
    return found


def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in BACKENDS}
