"""Latents between denoising and decoding: caught, to be kept, and decoded now or another day.

Pipelines end with ``vae.decode`` of latents that they have brought to the VAE's scale, without
what padding or references they added, and with ``video_processor.postprocess_video``. What the
first of these is given is the same for every pipeline: it is what is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from lvsa.wrapping import wrap_method


class Latents:
    """What a pipeline wanted to decode; None before it came to that."""

    def __init__(self) -> None:
        self.value: Tensor | None = None


@contextmanager
def without_decoding(pipe: Any) -> Iterator[Latents]:
    """A pipeline that decodes nothing while the context lasts: it returns a few black pixels.

    Yields:
        where the latents are that it would have decoded.
    """
    caught = Latents()

    def decode(z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        caught.value = z.detach()
        black = z.new_zeros(1, 3, 1, 8, 8)
        return DecoderOutput(sample=black) if return_dict else (black,)

    undo = wrap_method(pipe.vae, "decode", decode)
    try:
        yield caught
    finally:
        undo()
