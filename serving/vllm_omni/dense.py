"""Cross-attention, where the user names LVSA for every attention: the platform's own backend."""

import logging
from typing import Any

from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm_omni.diffusion.attention.backends.abstract import AttentionImpl
from vllm_omni.platforms import current_omni_platform

from lvsa.serving.vllm_omni.reporting import say

CROSS = "cross"


def is_cross(role: str) -> bool:
    """Whether an attention's role is over tokens that are not in the video."""
    return role.rpartition(".")[2] == CROSS


def dense_impl(role: str, *, head_size: int, **arguments: Any) -> AttentionImpl:
    """An attention layer of the backend that the platform chooses where the user says nothing."""
    path = current_omni_platform.get_diffusion_attn_backend_cls(
        selected_backend=None, head_size=head_size, allow_trtllm_default=False
    )
    backend = resolve_obj_by_qualname(path)
    say(
        f"attention of role {role!r} is over text and images, not over video: it takes this "
        f"platform's {backend.get_name()}",
        logging.INFO,
    )
    return backend.get_impl_cls()(head_size=head_size, role=role, **arguments)
