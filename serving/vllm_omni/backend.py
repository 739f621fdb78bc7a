"""The backend and its implementation, as vLLM-Omni's engine knows and calls them."""

from typing import Any

import torch
from torch import Tensor
from vllm_omni.diffusion.attention.backends.abstract import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
)
from vllm_omni.diffusion.config import get_current_diffusion_config_or_none

from lvsa.errors import LVSAError, SequenceError
from lvsa.serving.vllm_omni.configuration import grid_attention
from lvsa.serving.vllm_omni.dense import dense_impl, is_cross
from lvsa.serving.vllm_omni.plugin import NAME
from lvsa.serving.vllm_omni.request import current_grid, current_step
from lvsa.serving.vllm_omni.sequence import (
    TokenSequence,
    sequence_of_layout,
    sequence_with_text,
    split_queries,
    text_mask,
)


class LVSABackend(AttentionBackend):
    """LVSA for self-attention over video; the platform's dense backend for cross-attention."""

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return LVSAImpl

    @staticmethod
    def get_metadata_cls() -> type[AttentionMetadata]:
        return AttentionMetadata

    @staticmethod
    def get_builder_cls() -> Any:
        raise NotImplementedError("diffusion attention has no metadata builders")

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        """All of them: what a kernel does not take, it says itself."""
        return []

    @classmethod
    def supports_attention_mask(cls, attention_spec: object | None = None) -> bool:
        """Sequence parallelism asks before it pads; LVSA knows by itself where padding stands."""
        return True


class LVSAImpl(AttentionImpl):
    """One attention layer.

    Args:
        num_heads: H, of this rank.
        head_size: D.
        softmax_scale: of the scores.
        causal: refused.
        num_kv_heads: the same as ``num_heads``; grouped queries are refused.
        prefix: the layer's name.
        role: ``cross`` takes the platform's dense backend.

    Raises:
        LVSAError: for a layer or a configuration of the engine that LVSA does not serve.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        softmax_scale: float,
        causal: bool = False,
        num_kv_heads: int | None = None,
        prefix: str = "",
        qkv_layout: str | None = None,
        backend_kwargs: dict[str, Any] | None = None,
        role: str = "self",
        **extra: Any,
    ) -> None:
        self.scale, self.prefix, self.role = softmax_scale, prefix, role
        self.dense = None
        if is_cross(role):
            self.dense = dense_impl(
                role,
                num_heads=num_heads,
                head_size=head_size,
                softmax_scale=softmax_scale,
                causal=causal,
                num_kv_heads=num_kv_heads,
                prefix=prefix,
                qkv_layout=qkv_layout,
            )
            return
        config = get_current_diffusion_config_or_none()
        if config is None:
            raise LVSAError("LVSA's attention is built by vLLM-Omni's engine, which configures it")
        if causal or num_kv_heads not in (None, num_heads) or backend_kwargs:
            raise LVSAError(
                f"LVSA does not serve attention {prefix!r} (role {role!r}): causal is {causal}, "
                f"{num_heads} query heads share {num_kv_heads} key heads, options "
                f"{backend_kwargs}; it takes attention that is not causal, with as many key heads "
                "as query heads, and options in additional_config alone"
            )
        self.attend = grid_attention(config)

    # What follows depends on the request, not on tensors: tables, looked up.
    @torch.compiler.disable
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> Tensor:
        """Attention ``[B, L, H, D]`` of the queries that are here.

        Raises:
            SequenceError: where the model does not say what its tokens are, or says something else
                than there is.
        """
        if self.dense is not None:
            return self.dense.forward(query, key, value, attn_metadata)
        sequence = self._sequence(key.shape[1], attn_metadata)
        ranges = None if attn_metadata is None else attn_metadata.query_ranges
        queries = split_queries(sequence, query.shape[1], ranges)
        mask_BX = text_mask(sequence, attn_metadata)
        return self.attend(
            query, key, value, sequence, queries, current_step(), self.scale, mask_BX
        )

    def _sequence(self, tokens: int, metadata: AttentionMetadata | None) -> TokenSequence:
        if metadata is not None and metadata.video_layout is not None:
            return sequence_of_layout(metadata.video_layout, tokens)
        grid = current_grid()
        if grid is None:
            raise SequenceError(
                f"{self.attend.model.name} does not say which tokens of attention "
                f"{self.prefix or self.role!r} are video ({tokens} keys), and has no hook of "
                "LVSA's that does. Add one (docs/serving.md), or give this role another backend: "
                f'--diffusion-attention-config \'{{"per_role": {{"{self.role}": '
                '{"backend": "TORCH_SDPA"}}}\''
            )
        joint = None if metadata is None else metadata.joint_key
        return sequence_with_text(grid, tokens, None if joint is None else joint.shape[1])
