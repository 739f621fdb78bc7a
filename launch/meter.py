"""Seconds per denoising step and memory, without a synchronization in the loop."""

import resource
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch


class StepTimer:
    """Told of every step by the session's clock; reads the times afterwards.

    Args:
        device: an accelerator's steps are timed by events on its stream, the CPU's by the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first = 0
        """The first step that is computed: those before were done by an earlier run."""
        self._marks: list[Any] = []

    def __call__(self, step: int) -> None:
        if step <= self.first:
            self._marks = []
        if self.device.type == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = torch.Event(self.device, enable_timing=True)
            event.record()
            self._marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds of each step of the last generation; waits for the device."""
        pairs = list(pairwise(self._marks))
        if self.device.type == "cpu":
            return [b - a for a, b in pairs]
        torch.accelerator.synchronize(self.device)
        return [a.elapsed_time(b) / 1e3 for a, b in pairs]


class Stopwatch:
    """Seconds of the parts of a job, by name.

    Args:
        laps: parts that are over already.
    """

    def __init__(self, laps: Mapping[str, float] | None = None) -> None:
        self.laps: dict[str, float] = dict(laps or {})
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Ends a part, and returns its seconds."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
        return self.laps[name]


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was allocated: on the accelerator, or else by the whole process."""
    allocated = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    if allocated is not None:
        return int(allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
