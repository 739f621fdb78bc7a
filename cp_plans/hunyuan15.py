"""HunyuanVideo 1.5: the first block's hidden states are cut, proj_out gathers.

Text and image embeddings come whole to every rank, and so does the rotary table, of which the
adapter takes its rank's rows. All that stands between the last block and proj_out, the modulated
norm, treats each token alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.models._modeling_parallel import (
    ContextParallelInput,
    ContextParallelModelPlan,
    ContextParallelOutput,
)
from torch import Tensor
from torch.fx.experimental import _config as fx_config

from lvsa.cp_plans.base import Inputs, ModelPlan, latents_shape, zeros
from lvsa.shards import FrameGrid

# A trial needs texts of some length; how long they are changes nothing about the video.
TRIAL_TEXT_TOKENS = 8

SPLITS: dict[str, ContextParallelModelPlan] = {
    "transformer_blocks.0": {
        "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
    },
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}


class Unread(Tensor):
    """A meta tensor that answers what the model reads from its text and image embeddings.

    The model asks whether there is an image at all, and sorts each text's valid tokens before its
    padding. Values decide both, and meta tensors have none. Here there is no image, and whatever a
    mask picks is everything: that makes the text too long and leaves the video's shape as it is.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.all:
            return True
        return super().__torch_function__(func, types, args, kwargs or {})

    def __iter__(self) -> Iterator[Tensor]:
        # The model picks by masks in a loop over the batch, and nowhere else.
        take_all = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
        with take_all:
            yield from self.unbind()


def _unread(*shape: int) -> Tensor:
    return zeros(*shape).as_subclass(Unread)


def _inputs(transformer: Any, grid: FrameGrid) -> Inputs:
    config = transformer.config
    n = TRIAL_TEXT_TOKENS
    return {
        "hidden_states": zeros(*latents_shape(transformer, grid)),
        "timestep": zeros(1),
        "timestep_r": zeros(1) if config.use_meanflow else None,
        "encoder_hidden_states": _unread(1, n, config.text_embed_dim),
        "encoder_attention_mask": _unread(1, n),
        "encoder_hidden_states_2": _unread(1, n, config.text_embed_2_dim),
        "encoder_attention_mask_2": _unread(1, n),
        "image_embeds": _unread(1, n, config.image_embed_dim),
    }


HUNYUAN15 = ModelPlan("hunyuan15", SPLITS, _inputs)
