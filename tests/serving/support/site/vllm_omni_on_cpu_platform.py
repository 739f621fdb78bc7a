"""The platform: a CPU that claims to be several devices. Imported while vLLM-Omni is."""

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

RANKS = 8
"""Processes that may be asked for, each a device of its own."""
MEMORY = 16 << 30
"""Bytes that a device claims to have."""


class CPUPlatform(OmniPlatform, CpuPlatform):
    """What the diffusion engine asks of a platform."""

    _omni_enum = OmniPlatformEnum.OOT

    @classmethod
    def get_diffusion_attn_backend_cls(
        cls, selected_backend, head_size, allow_trtllm_default=False
    ):
        if selected_backend is None:
            return "vllm_omni_on_cpu_dense.DenseBackend"
        from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum

        cls.validate_diffusion_attn_backend(selected_backend)
        return DiffusionAttentionBackendEnum[selected_backend.upper()].get_path()

    @classmethod
    def get_torch_device(cls, local_rank=None):
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls):
        return RANKS

    @classmethod
    def get_device_version(cls):
        return None

    @classmethod
    def supports_torch_inductor(cls):
        return False

    @classmethod
    def synchronize(cls):
        pass

    @classmethod
    def empty_cache(cls):
        pass

    @classmethod
    def reset_peak_memory_stats(cls, device=None):
        pass

    @classmethod
    def max_memory_reserved(cls, device=None):
        return 0

    @classmethod
    def max_memory_allocated(cls, device=None):
        return 0

    @classmethod
    def get_free_memory(cls, device=None):
        return MEMORY

    @classmethod
    def get_device_memory(cls, device=None):
        return MEMORY, MEMORY
