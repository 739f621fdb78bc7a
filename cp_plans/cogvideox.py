"""CogVideoX: the blocks' video tokens are cut, proj_out gathers.

Text and video are one sequence in `patch_embed`, where 2B and 5B-I2V add their position embeddings,
and two tensors from there on; only the video's is cut, the text stays whole on every rank. What
leaves the last block for `norm_final`, `norm_out` and `proj_out` is video alone, so the gather at
`proj_out` moves the fewest bytes and brings back exactly the video. The rotary table comes whole
from the pipeline and each rank takes its rows of it in the adapter.
(`diffusers.models.transformers.cogvideox_transformer_3d`; releases that still sent the text through
`norm_final` are older than those this package takes, and the plan's trial would refuse them.)
"""

from typing import Any

import torch
from diffusers.models._modeling_parallel import (
    ContextParallelInput,
    ContextParallelModelPlan,
    ContextParallelOutput,
)

from lvsa.cp_plans.base import Inputs, ModelPlan, latents_shape, zeros
from lvsa.shards import FrameGrid

SPLITS: dict[str, ContextParallelModelPlan] = {
    "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}


def _inputs(transformer: Any, grid: FrameGrid) -> Inputs:
    config = transformer.config
    batch, channels, frames, height, width = latents_shape(transformer, grid)
    return {
        "hidden_states": zeros(batch, frames, channels, height, width),
        "encoder_hidden_states": zeros(1, config.max_text_seq_length, config.text_embed_dim),
        "timestep": zeros(1, dtype=torch.int64),
        "ofs": zeros(1) if config.ofs_embed_dim else None,
    }


COGVIDEOX = ModelPlan("cogvideox", SPLITS, _inputs)
