"""Seconds per denoising step and memory, without a synchronization in the loop."""

import resource
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

# Of this process, on Linux: what it is told, and what makes its peak begin anew.
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


class Meter:
    """Seconds and the most memory of the parts of a job, by name.

    Args:
        device: whose memory is watched: an accelerator's, or on the CPU that of this process.
        seconds, peaks: of parts that are over already.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: Mapping[str, float] | None = None,
        peaks: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.device = device
        self.seconds: dict[str, float] = dict(seconds or {})
        self.peaks: dict[str, dict[str, int]] = {n: dict(p) for n, p in (peaks or {}).items()}
        """Bytes, see `peak_memory`. Of a part that was done in two jobs, the larger ones."""
        forget_peak(device)
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """Ends a part, and returns its seconds."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self.peaks = merged([self.peaks, {name: peak_memory(self.device)}])
        forget_peak(self.device)
        self._last = now
        return self.seconds[name]


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most memory since `forget_peak`, in bytes.

    Returns:
        On an accelerator ``allocated``, by tensors, and ``reserved``, by PyTorch's allocator.
        Elsewhere ``resident``, of the whole process, files included that it has mapped.
    """
    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return {
            "allocated": int(module.max_memory_allocated(device)),
            "reserved": int(module.max_memory_reserved(device)),
        }
    if STATUS.exists():
        (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return {"resident": int(line.split()[1]) * 1024}
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def forget_peak(device: torch.device) -> None:
    """Has `peak_memory` count from now on.

    Systems other than Linux do not forget a process's peak: there, a part has that of those before.
    """
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)
    elif FORGET.exists():
        # proc_pid_clear_refs(5); a sandbox may refuse it.
        with suppress(OSError):
            FORGET.write_text("5")


def merged(found: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The largest numbers of several peaks by part."""
    largest: dict[str, dict[str, int]] = {}
    for peaks in found:
        for part, numbers in peaks.items():
            known = largest.setdefault(part, {})
            known.update({name: max(n, known.get(name, 0)) for name, n in numbers.items()})
    return largest


def largest_peak(peaks: Mapping[str, Mapping[str, int]]) -> int:
    """The most that was allocated in any part, or resident where nothing else is known; bytes."""
    return max(
        max(numbers.get(name, 0) for name in ("allocated", "resident"))
        for numbers in peaks.values()
    )
