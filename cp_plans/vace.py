"""Wan VACE: the control branch is cut like the video branch, beside it.

The first control block takes the video tokens as well as the control tokens, so both are cut
there. The control blocks after it take what the one before them gave, and the video tokens only
by signature. Hints are added to the video token by token, so they need no plan of their own.
"""

from typing import Any

from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelModelPlan

from lvsa.cp_plans.base import Inputs, ModelPlan, latents_shape, zeros
from lvsa.cp_plans.wan import SPLITS, WAN
from lvsa.shards import FrameGrid

VACE_SPLITS: dict[str, ContextParallelModelPlan] = {
    **SPLITS,
    "vace_blocks.0": {
        "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        "control_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
    },
}


def _inputs(transformer: Any, grid: FrameGrid) -> Inputs:
    batch, _, *size = latents_shape(transformer, grid)
    control = zeros(batch, transformer.config.vace_in_channels, *size)
    return {**WAN.inputs(transformer, grid), "control_hidden_states": control}


VACE = ModelPlan("vace", VACE_SPLITS, _inputs)
