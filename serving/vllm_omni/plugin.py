"""The entry point: puts LVSA among the backends that vLLM-Omni knows by name."""

import logging

NAME = "LVSA"
BACKEND = "lvsa.serving.vllm_omni.backend.LVSABackend"


def register() -> None:
    """Registers the backend. The engine calls this in every process; a second call does nothing."""
    from aenum import extend_enum
    from vllm_omni.diffusion.attention.backends.registry import (
        DiffusionAttentionBackendEnum,
        register_diffusion_backend,
    )

    if NAME not in DiffusionAttentionBackendEnum.__members__:
        extend_enum(DiffusionAttentionBackendEnum, NAME, BACKEND)
    register_diffusion_backend(DiffusionAttentionBackendEnum[NAME], BACKEND)
    # What LVSA says is printed where and as the engine prints.
    logging.getLogger("lvsa").parent = logging.getLogger("vllm")
