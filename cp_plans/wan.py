"""Wan 2.1 and 2.2, and SkyReels-V2, whose transformer has the same parts: diffusers' own plan.

Rope outputs and the blocks' hidden states are cut, proj_out gathers. Text and image embeddings are
not cut: cross-attention is local to every rank.
"""

from typing import Any

import torch
from diffusers.models._modeling_parallel import ContextParallelModelPlan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from lvsa.cp_plans.base import Inputs, ModelPlan, latents_shape, zeros
from lvsa.shards import FrameGrid

TEXT_TOKENS = 512
IMAGE_TOKENS = 257

# The root's entry cuts the timesteps, of which only TI2V-5B has one for every token.
PER_TOKEN_SPLITS: dict[str, ContextParallelModelPlan] = WanTransformer3DModel._cp_plan
SPLITS: dict[str, ContextParallelModelPlan] = {
    path: entry for path, entry in PER_TOKEN_SPLITS.items() if path
}


def _inputs(transformer: Any, grid: FrameGrid) -> Inputs:
    config = transformer.config
    image = None
    if config.image_dim is not None:
        # A model for first and last frames holds one position table over the tokens of both.
        both = config.pos_embed_seq_len
        image = (
            zeros(1, IMAGE_TOKENS, config.image_dim)
            if both is None
            else zeros(2, both // 2, config.image_dim)
        )
    return {
        "hidden_states": zeros(*latents_shape(transformer, grid)),
        "timestep": zeros(1, dtype=torch.int64),
        "encoder_hidden_states": zeros(1, TEXT_TOKENS, config.text_dim),
        "encoder_hidden_states_image": image,
    }


def _per_token_inputs(transformer: Any, grid: FrameGrid) -> Inputs:
    return {**_inputs(transformer, grid), "timestep": zeros(1, grid.tokens, dtype=torch.int64)}


WAN = ModelPlan("wan", SPLITS, _inputs)
WAN_PER_TOKEN = ModelPlan("wan-per-token-timesteps", PER_TOKEN_SPLITS, _per_token_inputs)
