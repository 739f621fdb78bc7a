"""Attention of Wan for training: the same values in fewer operations on short sequences.

Queries, keys and values meet in plain matrix products. On CPUs these take half the time of the
fused kernel's forward and backward in half precision at a few hundred tokens.
"""

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor


class TrainingProcessor:
    """Self- and cross-attention of Wan.

    Attributes:
        bias: of the text's logits, from `text.embed`; to be set before each forward.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if encoder_hidden_states is not None:
            assert self.bias is not None, "set the text's bias before the transformer runs"
            weights = weights + self.bias.to(weights.dtype)
        out = (weights.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turns pairs of channels of ``[B, L, H, D]`` by angles ``[1, L, 1, D]``."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2].to(x.dtype), sin[..., 1::2].to(x.dtype)
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2)


def use_in(transformer: WanTransformer3DModel) -> TrainingProcessor:
    """Puts one `TrainingProcessor` into all attention of a Wan transformer."""
    processor = TrainingProcessor()
    for block in transformer.blocks:
        block.attn1.set_processor(processor)
        block.attn2.set_processor(processor)
    return processor
