"""The entry point: puts LVSA among the backends that vLLM-Omni knows by name."""

import logging
from importlib.metadata import version

from packaging.version import Version

OLDEST = Version("0.30")
"""Of vLLM-Omni: earlier ones have other base classes, and say nothing of the grid."""
NAME = "LVSA"
BACKEND = "lvsa.serving.vllm_omni.backend.LVSABackend"


def register() -> None:
    """Registers the backend. The engine calls this in every process; a second call does nothing."""
    # What LVSA says is printed where and as the engine prints.
    logger = logging.getLogger("lvsa")
    logger.parent = logging.getLogger("vllm")
    installed = Version(version("vllm-omni"))
    if installed < OLDEST:
        # Whoever does not ask for LVSA is to have their engine all the same.
        logger.warning(
            "vllm-omni is %s; LVSA is a backend from %s on, and is left out",
            installed,
            OLDEST,
        )
        return
    from aenum import extend_enum
    from vllm_omni.diffusion.attention.backends.registry import (
        DiffusionAttentionBackendEnum,
        register_diffusion_backend,
    )

    if NAME not in DiffusionAttentionBackendEnum.__members__:
        extend_enum(DiffusionAttentionBackendEnum, NAME, BACKEND)
    register_diffusion_backend(DiffusionAttentionBackendEnum[NAME], BACKEND)
