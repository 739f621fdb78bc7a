"""Wan 2.1 and 2.2: self-attention over video, text and image by cross-attention."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lvsa.adapters.base import ModelAdapter
from lvsa.cp_plans import ModelPlan, get_plan
from lvsa.processor import QKV
from lvsa.rope import apply_rotary_1d

# Wan's text encoder always fills this many tokens; whatever stands before them is an image.
TEXT_TOKENS = 512
TI2V_SPATIAL_FACTOR = 16
TI2V_HORIZON = 31


class WanAdapter(ModelAdapter):
    """Wan T2V in all its sizes, with one transformer or two."""

    name = "wan"
    pipelines = ("WanPipeline",)
    horizon = 21

    def reference_latent_frames(self, pipe: Any) -> int:
        """81 video frames for Wan 2.1 and 2.2, 121 for TI2V-5B with its 16× VAE."""
        return TI2V_HORIZON if self.spatial_factor(pipe) == TI2V_SPATIAL_FACTOR else self.horizon

    def extract_qkv(self, attn: Any, hidden: Tensor, encoder: Tensor | None) -> QKV:
        if attn.is_cross_attention:
            q = _heads(attn, attn.norm_q(attn.to_q(hidden)))
            return q, q, q
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
        return _heads(attn, attn.norm_q(q)), _heads(attn, attn.norm_k(k)), _heads(attn, v)

    def extract_cross_attn_kv(self, attn: Any, encoder: Tensor) -> tuple[Tensor, Tensor]:
        if getattr(attn, "fused_projections", False):
            k, v = attn.to_kv(encoder).chunk(2, dim=-1)
        else:
            k, v = attn.to_k(encoder), attn.to_v(encoder)
        return _heads(attn, attn.norm_k(k)), _heads(attn, v)

    def split_encoder_for_cross_attn(
        self, attn: Any, encoder: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        if attn.add_k_proj is None:
            return None, encoder
        n_image = encoder.shape[1] - TEXT_TOKENS
        return encoder[:, :n_image], encoder[:, n_image:]

    def extract_image_kv(self, attn: Any, encoder_image: Tensor) -> tuple[Tensor, Tensor]:
        if getattr(attn, "fused_projections", False):
            k, v = attn.to_added_kv(encoder_image).chunk(2, dim=-1)
        else:
            k, v = attn.add_k_proj(encoder_image), attn.add_v_proj(encoder_image)
        return _heads(attn, attn.norm_added_k(k)), _heads(attn, v)

    def apply_rotary(
        self, q: Tensor, k: Tensor, rotary_emb: Any, local_seq: int, rank: int, world: int
    ) -> tuple[Tensor, Tensor]:
        return apply_rotary_1d(q, k, rotary_emb, local_seq, rank, world)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, module in transformer.named_modules():
            if path.endswith(".attn1") and hasattr(module, "set_processor"):
                yield path, module

    def model_plan(self, pipe: Any, transformer: nn.Module) -> ModelPlan:
        per_token = getattr(pipe.config, "expand_timesteps", False)
        return get_plan("wan-per-token-timesteps" if per_token else "wan")


def _heads(attn: Any, x: Tensor) -> Tensor:
    """``[B, L, H·D]`` to ``[B, L, H, D]``."""
    return x.unflatten(2, (attn.heads, -1))
