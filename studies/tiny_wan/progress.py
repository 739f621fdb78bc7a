"""Progress of a stage, in steps or in minutes, and the learning rate that goes with it."""

import math
import time
from collections.abc import Iterable

import torch

WARMUP_STEPS = 60
"""Steps over which the learning rate rises."""


class Progress:
    """Share of a stage that is done: of its steps, or of its minutes if those run out sooner.

    So the learning rate falls to its end also on a machine that is too slow for all steps.

    Args:
        steps: of the stage.
        minutes: it may take; None for as many as it needs.
        seconds_before: taken by earlier runs.
    """

    def __init__(self, steps: int, minutes: float | None, seconds_before: float) -> None:
        self.steps, self.minutes = steps, minutes
        self._begun = time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        """Time spent on this stage, with that of earlier runs."""
        return time.monotonic() - self._begun

    def share(self, step: int) -> float:
        """Share that is done after ``step`` steps, 0 to 1."""
        share = step / self.steps
        if self.minutes is not None:
            share = max(share, self.seconds / (60 * self.minutes))
        return min(1.0, share)

    def set_rate(
        self, optimizers: Iterable[torch.optim.Optimizer], highest: float, step: int
    ) -> None:
        """Sets the learning rate: a linear rise, then half a cosine down to a fiftieth."""
        rise = min(1.0, (step + 1) / WARMUP_STEPS)
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share(step)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = highest * rise * fall
