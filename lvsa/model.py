"""What attention needs to know of a model: its projections, its rotation and its output layers.

`AttentionAdapter` is the contract of `lvsa.processor.LVSAProcessor`. A model whose processor is
also to serve cross-attention modules adds `CrossAttentionAdapter`.

Shapes: B batch, L local video tokens, X text tokens, H heads, D head dim.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lvsa.backends import Backend
from lvsa.errors import LVSAError

QKV = tuple[Tensor, Tensor, Tensor]


class AttentionAdapter(ABC):
    """How one model family projects, rotates and returns what its attention works on.

    ``attn`` is an attention module of the model, with the attributes that its own processor uses.
    """

    @abstractmethod
    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        """Queries, keys and values ``[B, L, H, D]`` of the video tokens, normalized, not rotated.

        In a cross-attention module only the queries are used.
        """

    @abstractmethod
    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        """Local queries and keys, rotated by their positions in the whole sequence."""

    def extract_encoder_qkv(self, attn: Any, encoder: Tensor) -> QKV | None:
        """Queries, keys and values ``[B, X, H, D]`` of text tokens that take part in the attention.

        None where text only enters by cross-attention.
        """
        return None

    def output_projection(self, attn: Any, hidden: Tensor, query_dtype: torch.dtype) -> Tensor:
        """``[B, L, H·D]`` through the module's output layers."""
        hidden = hidden.to(query_dtype)
        for layer in attn.to_out:
            hidden = layer(hidden)
        return hidden

    def format_output(
        self,
        attn: Any,
        hidden: Tensor,
        encoder_output: Tensor | None,
        encoder_seq_len: int,
        dtype: torch.dtype,
    ) -> Any:
        """What the model's own processor returns: hidden states, or those and the text's."""
        return hidden


class CrossAttentionAdapter(ABC):
    """The optional part: video queries over text and image embeddings that are not in the video.

    Cross-attention is local to a rank and needs no processor of LVSA's; models keep their own.
    An adapter adds this class where one processor is to serve every attention module.
    """

    @abstractmethod
    def extract_cross_attn_kv(self, attn: Any, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, X, H, D]`` of the text in a cross-attention module."""

    def split_encoder_for_cross_attn(
        self, attn: Any, encoder: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Image part (None without one) and text part of the encoder states."""
        return None, encoder

    def extract_image_kv(self, attn: Any, encoder_image: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image embeddings in a cross-attention module.

        Raises:
            LVSAError: by default; a model that attends image embeddings overrides it.
        """
        raise LVSAError(f"{type(self).__name__} has no attention over image embeddings")

    def cross_attention(
        self, attn: Any, query: Tensor, encoder_image: Tensor, backend: Backend
    ) -> Tensor:
        """Video queries ``[B, L, H, D]`` over image embeddings, to be added to those over text."""
        k, v = self.extract_image_kv(attn, encoder_image)
        return backend.attend_all(query, k, v).out_BLHD


def split_heads(attn: Any, x: Tensor) -> Tensor:
    """``[B, L, H·D]`` to ``[B, L, H, D]``."""
    return x.unflatten(2, (attn.heads, -1))
