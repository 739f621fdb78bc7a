"""Frames that leave a VAE while it decodes, so that no video is held as a whole.

Causal VAEs decode a few latent frames at a time, and keep of them what the next ones need.
diffusers puts the frames together to one tensor, which it copies with each of them: the video is
there twice in the end, and once more as an array. Here the VAE's own ``decode`` runs as always, but
for what its decoder returns: that goes where it is wanted, and an empty tensor takes its place.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from lvsa.wrapping import wrap_method


def _of_wan(vae: Any, frames_BCFHW: Tensor) -> Tensor:
    """Pixels of what Wan's decoder returns, as its VAE's ``_decode`` makes them."""
    patch = vae.config.patch_size
    if patch is not None:
        frames_BCFHW = unpatchify(frames_BCFHW, patch_size=patch)
    return frames_BCFHW.clamp(-1.0, 1.0)


def _of_cogvideox(vae: Any, frames_BCFHW: Tensor) -> Tensor:
    """Pixels of what CogVideoX's decoder returns: it returns pixels."""
    return frames_BCFHW


# VAEs that decode a few latent frames at a time, with what makes pixels of their decoders' results.
CAUSAL: dict[type, Callable[[Any, Tensor], Tensor]] = {
    AutoencoderKLWan: _of_wan,
    AutoencoderKLCogVideoX: _of_cogvideox,
}


def grows_with_video(vae: Any, tiled: bool) -> str | None:
    """Why memory grows with the video while this VAE decodes; None where it does not.

    Args:
        tiled: whether it decodes in tiles.
    """
    if type(vae) not in CAUSAL:
        return f"{type(vae).__name__} decodes all frames at once"
    return "one tile after the other, each with all frames" if tiled else None


@torch.no_grad()
def decode(pipe: Any, latents: Tensor, write: Callable[[np.ndarray], object]) -> None:
    """Decodes latents to the frames that the pipeline itself would make of them, bit for bit.

    Args:
        pipe: with a VAE and a video processor.
        latents: ``[1, C, T, H, W]``, as the pipeline gives them to its VAE.
        write: takes the frames ``[H, W, 3]`` in 0 … 1, one after the other.
    """

    def emit(frames_BCFHW: Tensor) -> None:
        for number in range(frames_BCFHW.shape[2]):
            frame = frames_BCFHW[:, :, number : number + 1]
            write(pipe.video_processor.postprocess_video(frame, output_type="np")[0, 0])

    with streaming(pipe.vae, emit):
        rest = pipe.vae.decode(latents, return_dict=False)[0]
    emit(rest)
    # As pipelines end: with offloading, the VAE makes way for what comes next.
    if hasattr(pipe, "maybe_free_model_hooks"):
        pipe.maybe_free_model_hooks()


@contextmanager
def streaming(vae: Any, emit: Callable[[Tensor], object]) -> Iterator[None]:
    """A VAE that hands its frames on as its decoder makes them, where it decodes a few at a time.

    Its ``decode`` returns what was not handed on: no frames, or all. Tiles are decoded one after
    the other with all of their frames: those of a video that is decoded in tiles come in the end.

    Args:
        emit: takes ``[B, C, F, H, W]`` in -1 … 1, a few frames at a time.
    """
    pixels = CAUSAL.get(type(vae))
    if pixels is None:
        yield
        return
    in_tiles = False
    forward, tiled_decode = vae.decoder.forward, vae.tiled_decode

    @functools.wraps(forward)
    def decoder(*args: Any, **options: Any) -> Any:
        result = forward(*args, **options)
        if in_tiles:
            return result
        # CogVideoX's decoder returns what it keeps for the next frames too.
        frames, *kept = result if isinstance(result, tuple) else (result,)
        emit(pixels(vae, frames))
        nothing = frames.new_empty(*frames.shape[:2], 0, *frames.shape[3:])
        return (nothing, *kept) if kept else nothing

    @functools.wraps(tiled_decode)
    def tiled(*args: Any, **options: Any) -> Any:
        nonlocal in_tiles
        in_tiles = True
        return tiled_decode(*args, **options)

    with ExitStack() as undo:
        undo.callback(wrap_method(vae.decoder, "forward", decoder))
        undo.callback(wrap_method(vae, "tiled_decode", tiled))
        yield
