"""diffusers' step caches: which of them works for which pipeline, and what its number means.

A cache skips what has hardly changed since the step before. It is an approximation: the video is
another one than without it. LVSA makes all ranks skip together (`lvsa.adapters.install.prepared`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.hooks import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15TransformerBlock
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock
from torch import nn

from lvsa.errors import LVSAError

# Blocks that FirstBlockCache can handle and does not know: what they return, by position.
TransformerBlockRegistry.register(
    SkyReelsV2TransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
TransformerBlockRegistry.register(
    HunyuanVideo15TransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)

# Pipelines that tell a cache which guidance pass it is in. WanVideoToVideoPipeline does not.
COGVIDEOX = (
    "CogVideoXPipeline",
    "CogVideoXImageToVideoPipeline",
    "CogVideoXVideoToVideoPipeline",
)
TELLING = (
    "WanPipeline",
    "WanImageToVideoPipeline",
    "SkyReelsV2Pipeline",
    "SkyReelsV2ImageToVideoPipeline",
    "HunyuanVideo15Pipeline",
    "HunyuanVideo15ImageToVideoPipeline",
    *COGVIDEOX,
)


@dataclass(frozen=True)
class StepCache:
    """One of diffusers' caches.

    Args:
        number: what its number is.
        default, least: value of the number, and the smallest allowed.
        whole: whether it must be a whole number.
        steps: the smallest number of denoising steps of which it may skip one.
        pipelines: names of pipeline classes that it works for.
        needs: what those have that others lack.
        config: diffusers' configuration, of the pipeline, the transformer and the number.
        skips_shared: whether it skips anything where ranks share the transformers' weights.
    """

    number: str
    default: float
    least: float
    whole: bool
    steps: int
    pipelines: tuple[str, ...]
    needs: str
    config: Callable[[Any, Any, Any], Any]
    skips_shared: bool = True


CACHES = {
    "first-block": StepCache(
        "relative change of the first block's residual below which the other blocks are skipped",
        *(0.05, 0.0, False, 2),
        pipelines=TELLING,
        needs="guidance passes told apart, and blocks that nothing is added between",
        config=lambda pipe, transformer, x: FirstBlockCacheConfig(threshold=x),
    ),
    "taylorseer": StepCache(
        "steps from one that is computed to the next; those between are extrapolated",
        *(5, 1, True, 4),
        pipelines=(*TELLING, "WanVACEPipeline"),
        needs="guidance passes told apart",
        # The lite kind keeps one tensor where the other keeps several of every layer.
        config=lambda pipe, transformer, x: TaylorSeerCacheConfig(
            cache_interval=x, use_lite_mode=True, taylor_factors_dtype=transformer.dtype
        ),
    ),
    "pyramid": StepCache(
        "steps from one whose attention is computed to the next, between timesteps 800 and 100",
        *(2, 1, True, 2),
        pipelines=COGVIDEOX,
        needs="both guidance passes in one batch: it keeps the attention of whichever ran last",
        config=lambda pipe, transformer, x: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=x,
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    ),
    "sea": StepCache(
        "change of the filtered latents, added up, below which all blocks are skipped",
        *(0.25, 0.0, False, 3),
        pipelines=("WanPipeline",),
        needs="a pipeline that tells the noise level of its steps",
        config=lambda pipe, transformer, x: SeaCacheConfig(threshold=x),
        # It goes around the blocks' hooks, FSDP's among them, and stands aside where there are any.
        skips_shared=False,
    ),
}


def parse_cache(text: str) -> tuple[str, float]:
    """Name and number of a cache, from ``NAME[:NUMBER]``.

    Raises:
        LVSAError: for an unknown name, or a number out of range.
    """
    name, colon, given = text.partition(":")
    cache = CACHES.get(name)
    if cache is None:
        raise LVSAError(f"--cache {text}: no such cache; known: {', '.join(CACHES)}")
    if not colon:
        return name, cache.default
    try:
        number = int(given) if cache.whole else float(given)
    except ValueError:
        number = float("nan")
    if not cache.least <= number < float("inf"):
        kind = "a whole number" if cache.whole else "a number"
        raise LVSAError(
            f"--cache {text}: {given!r} must be {kind} of at least {cache.least:g}: the "
            f"{cache.number}; default: {cache.default:g}"
        )
    return name, number


def check_cache(text: str, pipeline: str) -> None:
    """Stops for a cache that does not work for a pipeline; names those that do.

    Args:
        text: as `parse_cache` takes it.
        pipeline: name of the pipeline's class.

    Raises:
        LVSAError: see `parse_cache`; and where the cache would make another video than it should.
    """
    name, _ = parse_cache(text)
    if pipeline not in CACHES[name].pipelines:
        others = [n for n, cache in CACHES.items() if pipeline in cache.pipelines]
        raise LVSAError(
            f"--cache {name} does not work for {pipeline}: it needs {CACHES[name].needs}. "
            f"Caches that do: {', '.join(others) or 'none'}"
        )


def enable_cache(text: str, pipe: Any, transformers: dict[str, nn.Module]) -> None:
    """Puts a cache on every transformer of a pipeline."""
    name, number = parse_cache(text)
    for transformer in transformers.values():
        model: Any = transformer
        model.enable_cache(CACHES[name].config(pipe, model, number))
