"""The attention processor that takes the place of a model's own.

It knows the engine and, through an adapter, the model: projections and rotation are the model's,
attention is LVSA's. It runs sparse attention or stops with an error; it never runs dense instead.
"""

from typing import Any

from torch import Tensor

from lvsa.attention import LVSAttention, TextTokens
from lvsa.errors import LVSAError
from lvsa.masks import KnownMasks
from lvsa.model import QKV, AttentionAdapter, CrossAttentionAdapter

__all__ = ["QKV", "LVSAProcessor"]


class LVSAProcessor:
    """Drop-in for a diffusers attention processor.

    Args:
        adapter: what differs between models.
        attention: the engine; shared by all blocks of all transformers of a pipeline.
        masks: of text, with what is known of them; shared likewise.
    """

    def __init__(
        self, adapter: AttentionAdapter, attention: LVSAttention, masks: KnownMasks | None = None
    ) -> None:
        self.adapter, self.attention = adapter, attention
        self.masks = masks or KnownMasks()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
        image_rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Same arguments and result as the model's own processor, for this rank's tokens."""
        if kwargs:
            raise TypeError(f"LVSAProcessor got attention arguments it does not know: {[*kwargs]}")
        adapter, engine, encoder = self.adapter, self.attention, encoder_hidden_states
        if attention_mask is not None and encoder is None:
            raise LVSAError(
                "LVSAProcessor was given a mask over video tokens, which it does not apply; "
                "allowed: none"
            )
        q, k, v = adapter.extract_qkv(attn, hidden_states, encoder)
        text = None
        if encoder is not None:
            encoder_qkv = adapter.extract_encoder_qkv(attn, encoder)
            if encoder_qkv is None:
                if attention_mask is not None:
                    raise LVSAError(
                        "LVSAProcessor applies no mask in cross-attention; leave the model's own "
                        "processor on it"
                    )
                return self._cross_attention(attn, q, encoder)
            text = TextTokens(*encoder_qkv, valid=self._valid_text(attention_mask))
        rotary = rotary_emb if rotary_emb is not None else image_rotary_emb
        if rotary is not None:
            q, k = adapter.apply_rotary(q, k, rotary, q.shape[1], engine.rank, engine.world)
        out, text_out = engine(q, k, v, text)
        hidden = adapter.output_projection(attn, out.flatten(2), q.dtype)
        n_text = 0 if encoder is None else encoder.shape[1]
        encoder_output = None if text_out is None else text_out.flatten(2)
        return adapter.format_output(attn, hidden, encoder_output, n_text, q.dtype)

    def _cross_attention(self, attn: Any, q: Tensor, encoder: Tensor) -> Any:
        """Video queries over text (and image) embeddings: local, since those are not cut."""
        adapter = self.adapter
        if not isinstance(adapter, CrossAttentionAdapter):
            raise LVSAError(
                f"{type(adapter).__name__} serves no cross-attention, and its processor was "
                f"installed on {type(attn).__name__}, which was given encoder states. Leave the "
                "model's own processor on it, or add CrossAttentionAdapter to the adapter"
            )
        image, text = adapter.split_encoder_for_cross_attn(attn, encoder)
        k, v = adapter.extract_cross_attn_kv(attn, text)
        out = self.attention.backend.attend_all(q, k, v).out_BLHD
        if image is not None:
            out = out + adapter.cross_attention(attn, q, image, self.attention.backend)
        hidden = adapter.output_projection(attn, out.flatten(2), q.dtype)
        return adapter.format_output(attn, hidden, None, encoder.shape[1], q.dtype)

    def _valid_text(self, mask: Tensor | None) -> tuple[Tensor, ...] | None:
        """Positions of valid text; None where all of it is."""
        return None if mask is None else self.masks.valid_text(mask)
