"""What a pipeline has beside networks, where nothing has values: tokenizers, images, a schedule."""

import copy
from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, BatchFeature

from lvsa.launch.rehearsal.values import known

HIGH, LOW = 999.0, 0.0
"""Timesteps of the steps that run: of two transformers each has one."""


class Tokenizer:
    """Makes of every text as many tokens as the pipeline asks for at most."""

    def __call__(self, text: Any, max_length: int | None = None, **_: Any) -> BatchEncoding:
        texts = 1 if isinstance(text, str) else len(text)
        ids = torch.zeros(texts, max_length or 1, dtype=torch.int64)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    apply_chat_template = __call__


class ImageProcessor:
    """Makes of every image the pixels that an image encoder takes.

    Args:
        size: pixels in height and width.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        count = len(images) if isinstance(images, list | tuple) else 1
        return BatchFeature({"pixel_values": torch.zeros(count, 3, self.size, self.size)})

    preprocess = __call__


class Timesteps(list[Tensor]):
    """Steps of a schedule as numbers that are known, which fake tensors are not."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Timesteps(found) if isinstance(index, slice) else found

    def repeat(self, count: int) -> Tensor:
        """The first of them, ``[count]``."""
        return self[0].expand(count)


class Steps:
    """A scheduler that takes any step, and holds what its kind holds from step to step."""

    config: Any
    timesteps: Timesteps
    sigmas: Timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Two steps, as many as there are transformers at most."""
        self.timesteps = self.sigmas = Timesteps([known(HIGH), known(LOW)])
        self._held: deque[Any] = deque(maxlen=1 + getattr(self.config, "solver_order", -1))

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        """The latents as they are."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, _: Any) -> Tensor:
        """As many latents as came."""
        return original + noise

    def step(self, output: Tensor, *given: Any, return_dict: bool = True) -> tuple[Tensor, ...]:
        """The latents of the next step, and what CogVideoX's solver hands on besides."""
        sample = given[-1]
        # A solver of some order holds as many predictions, and the latents before.
        while len(self._held) < (self._held.maxlen or 0):
            self._held.append(torch.empty_like(sample))
        after = torch.empty_like(sample)
        return (after, torch.empty_like(sample)) if len(given) > 2 else (after,)


def schedule_like(scheduler: Any) -> Any:
    """A stand-in for a scheduler, of its class."""
    other = copy.copy(scheduler)
    cls = type(scheduler)
    other.__class__ = type(cls.__name__, (Steps, cls), {})
    return other
