"""A trace of some denoising steps beside the video, from every rank, with its phases named."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function, supported_activities

from lvsa.adapters.install.session import LVSASession
from lvsa.errors import LVSAError
from lvsa.wrapping import wrap_method

logger = logging.getLogger(__name__)

ATTENTION, EXCHANGE, REST = "attention", "exchange", "rest"
# Attention kernels are called by these methods of a backend.
KERNELS = ("attend", "attend_all")


def check_profile(steps: int | None, of: int) -> None:
    """Stops where more steps are to be profiled than a video has.

    Args:
        steps: to profile; None for none.
        of: denoising steps of the video.

    Raises:
        LVSAError: names the largest number.
    """
    if steps is not None and steps > of:
        raise LVSAError(f"--profile is {steps}; the video has {of} denoising steps, at most {of}")


class StepProfile:
    """Told of every step by the session's clock; profiles some of them.

    The first step of a generation, which allocates and compiles, is left out where there are more
    than are asked for. Each moment of a profiled step belongs to one phase: attention (kernels and
    merges), exchange (packing, sending and waiting for keys and values), rest (all else, gathers of
    text and output included).

    Args:
        session: LVSA on the pipeline, with its video's grid set.
        steps: to profile, if there are so many.
        of: denoising steps that are to run.
        device: whose times are reported.
    """

    def __init__(self, session: LVSASession, steps: int, of: range, device: torch.device) -> None:
        self.first = of.start + (1 if len(of) > steps else 0)
        self.end, self.device = min(self.first + steps, of.stop), device
        self._profiler: Any = None
        self._running = False
        self._phase, self._span = REST, record_function(REST)
        attention = session.attention
        for name in KERNELS:
            kernel = self._timed(getattr(attention.backend, name))
            session.undo_later(wrap_method(attention.backend, name, kernel))
        stream = self._streamed(attention.exchange.stream)
        session.undo_later(wrap_method(attention.exchange, "stream", stream))
        session.undo_later(self._stop)
        session.clock.listeners.append(self)

    def __call__(self, step: int) -> None:
        if step == self.first and self._profiler is None:
            self._profiler = profile(activities=supported_activities())
            self._profiler.start()
            self._running = True
            self._enter(REST)
        elif step == self.end:
            self._stop()

    def write(self, stem: Path, rank: int) -> dict[str, Any]:
        """Writes ``STEM.rankN.trace.json.gz``, for Perfetto or chrome://tracing.

        Returns:
            The steps, and seconds of each phase in all of them: on an accelerator those that its
            kernels took.
        """
        self._stop()
        path = stem.with_name(f"{stem.name}.rank{rank}.trace.json.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(path))
        logger.info("wrote %s", path)
        on_cpu = self.device.type == "cpu"
        events = {event.key: event for event in self._profiler.key_averages()}
        seconds = {
            name: events[name].cpu_time_total if on_cpu else events[name].device_time_total
            for name in (ATTENTION, EXCHANGE, REST)
            if name in events
        }
        return {
            "steps": [self.first, self.end - 1],
            "seconds": {name: round(us / 1e6, 6) for name, us in seconds.items()},
        }

    def _stop(self) -> None:
        if self._running:
            self._leave()
            self._running = False
            self._profiler.stop()

    def _timed(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(kernel)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._in_phase(ATTENTION):
                return kernel(*args, **kwargs)

        return timed

    def _streamed(self, stream: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @wraps(stream)
        def streamed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            blocks = iter(stream(*args, **kwargs))
            while True:
                with self._in_phase(EXCHANGE):
                    block = next(blocks, None)
                if block is None:
                    return
                yield block

        return streamed

    @contextmanager
    def _in_phase(self, name: str) -> Iterator[None]:
        """A stretch of one phase; the one around it ends before it and goes on after it."""
        if not self._running or self._phase == name:
            yield
            return
        around = self._phase
        self._leave()
        self._enter(name)
        try:
            yield
        finally:
            self._leave()
            self._enter(around)

    def _enter(self, name: str) -> None:
        self._phase, self._span = name, record_function(name)
        self._span.__enter__()

    def _leave(self) -> None:
        self._span.__exit__(None, None, None)
