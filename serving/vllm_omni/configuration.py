"""What the engine's configuration makes of LVSA: refusals, options, the model, a hook."""

import logging
import os
from functools import lru_cache
from typing import Any

from lvsa.errors import LVSAError
from lvsa.serving.vllm_omni.attention import GridAttention
from lvsa.serving.vllm_omni.checkpoint import served_model
from lvsa.serving.vllm_omni.hooks import install_hook
from lvsa.serving.vllm_omni.options import KEY, ServingOptions, read_options
from lvsa.serving.vllm_omni.published import read_environment
from lvsa.serving.vllm_omni.reporting import say

NOT_QUANTIZED = (None, "auto", "float")


def grid_attention(config: Any) -> GridAttention:
    """LVSA as an ``OmniDiffusionConfig`` asks for it; all layers of a model share one.

    Raises:
        LVSAError: for a mode or a setting that LVSA does not honor, an unknown option, or a model
            that no adapter serves.
    """
    try:
        return _read(config)
    except LVSAError as error:
        # The engine ends its groups of processes before it says why, and that may take long.
        say(str(error), logging.ERROR)
        raise


def _read(config: Any) -> GridAttention:
    check_engine(config)
    defaults, remarks = read_environment(os.environ)
    for remark in remarks:
        say(remark)
    options = read_options((config.additional_config or {}).get(KEY), defaults)
    for name in options.without_effect():
        say(f"no effect: {name}")
    install_hook(config.model_class_name)
    return _grid_attention(config.model, config.revision, options)


@lru_cache(maxsize=4)
def _grid_attention(model: str, revision: str | None, options: ServingOptions) -> GridAttention:
    attention = GridAttention(served_model(model, revision), options)
    changed = {name: getattr(options, name) for name in options.changed()}
    horizon = options.horizon or attention.model.horizon
    say(
        f"LVSA for {attention.model.name}: horizon {horizon} latent frames, kernel "
        f"{options.backend}" + (f", {changed}" if changed else ""),
        logging.INFO,
    )
    return attention


def check_engine(config: Any) -> None:
    """Stops for what would not reach LVSA, or what it would not do.

    Raises:
        LVSAError: for ring attention, and for keys and values of a quantized type.
    """
    ring = config.parallel_config.ring_degree
    if ring > 1:
        raise LVSAError(
            f"ring_degree is {ring}: ring attention calls no backend, so LVSA would be lost in it. "
            f"Modes that work: ulysses_degree = {ring}, allgather_degree = {ring}, "
            "tensor_parallel_size, cfg_parallel_size; leave ring_degree at 1"
        )
    dtype = config.diffusion_kv_cache_dtype
    if dtype not in NOT_QUANTIZED:
        raise LVSAError(
            f"diffusion_kv_cache_dtype is {dtype!r}: LVSA's kernels take keys and values in the "
            "model's own type; leave it at 'auto'"
        )
