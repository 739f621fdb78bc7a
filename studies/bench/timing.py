"""Seconds of calls: by events of the device where there is one, by the clock elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

from lvsa.studies.bench.processes import synchronize

CACHE_BYTES = 256 << 20
"""What inputs have to exceed, all sets together, so that none is in a cache when it comes round
again: more than the L2 cache of any GPU of today (H100 50 MB, B200 126 MB)."""


def sets_past_the_cache(set_bytes: int, device: torch.device) -> int:
    """How many sets of inputs to call with in turn; one on the CPU."""
    return 1 if device.type == "cpu" else 1 + -(-CACHE_BYTES // set_bytes)


def time_calls(
    call: Callable[[int], object], n_sets: int, repeats: int, device: torch.device
) -> list[float]:
    """Seconds of each of ``repeats`` calls after one that is not timed.

    Args:
        call: with the number of the set of inputs to take.
        n_sets: how many there are.
        repeats: timed calls.
        device: where they run.
    """
    call(0)
    synchronize(device)
    seconds: list[float] = []
    for turn in range(repeats):
        with timed(seconds, device):
            call((turn + 1) % n_sets)
    return seconds


@contextmanager
def timed(seconds: list[float], device: torch.device) -> Iterator[None]:
    """A block whose time on the device is added to a list."""
    if device.type != "cuda":
        synchronize(device)
        began = time.perf_counter()
        yield
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        return
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    yield
    after.record()
    after.synchronize()
    seconds.append(before.elapsed_time(after) / 1e3)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds)}
