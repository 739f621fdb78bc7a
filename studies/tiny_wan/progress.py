"""How far a stage has come, in steps or in minutes, and the learning rate that goes with it."""

import math
import time
from collections.abc import Iterable

import torch

WARMUP_STEPS = 60


class Progress:
    """Share of a stage that is done: of its steps, or of its minutes if those run out sooner.

    A slow machine thus ends in time with the learning rate where it belongs.
    """

    def __init__(self, steps: int, minutes: float | None, seconds_before: float) -> None:
        self.steps, self.minutes = steps, minutes
        self._begun = time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        """Time in this stage, with what earlier runs of it took."""
        return time.monotonic() - self._begun

    def share(self, step: int) -> float:
        """From 0 to 1 after ``step`` steps."""
        share = step / self.steps
        if self.minutes is not None:
            share = max(share, self.seconds / (60 * self.minutes))
        return min(1.0, share)

    def set_rate(
        self, optimisers: Iterable[torch.optim.Optimizer], highest: float, step: int
    ) -> None:
        """A straight rise over the first steps, then half a cosine down to a fiftieth."""
        rise = min(1.0, (step + 1) / WARMUP_STEPS)
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share(step)))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = highest * rise * fall
