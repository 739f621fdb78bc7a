"""Where a rank is in its work: a phase, a step, and a number that grows while it goes on."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lvsa.wrapping import wrap_method

# Phases in their order. In the last a rank's own work is done, and that of the first is waited for.
DONE = "waiting"
ORDER = ("starting", "planning", "loading", "encoding", "denoising", "decoding", "writing", DONE)
# Here all ranks work in step; elsewhere some may wait while others work alone.
TOGETHER = "denoising"


class Progress:
    """What one rank is doing; `Watch` tells the others of it.

    Args:
        first: whether this rank decodes and writes for all.
    """

    def __init__(self, first: bool = True) -> None:
        self.first = self.shown = first
        self.phase = ORDER[0]
        self.step: int | None = None
        self.steps: int | None = None
        self.videos = 0
        self.listeners: list[Callable[[], None]] = []
        self._count: Callable[[], int] = lambda: 0

    def enter(self, phase: str) -> None:
        """A phase begins."""
        assert phase in ORDER, phase
        self._move(phase, None)

    @contextmanager
    def generation(self, session: Any, pipe: Any, steps: int) -> Iterator[None]:
        """In the block this rank makes a video: encoding, denoising, decoding.

        Calls of the attention are counted, so that a long step is not taken for a rank that hangs.

        Args:
            session: LVSA's, on the pipeline.
            pipe: of diffusers.
            steps: denoising steps that were asked for.
        """
        decode = pipe.vae.decode

        @functools.wraps(decode)
        def decoding(*args: Any, **options: Any) -> Any:
            self.enter("decoding")
            return decode(*args, **options)

        def step(number: int) -> None:
            self._move(TOGETHER, number)

        self.videos, self.steps = self.videos + 1, steps
        self._count = lambda: session.attention.received.calls
        self.enter("encoding")
        session.clock.listeners.append(step)
        undo = wrap_method(pipe.vae, "decode", decoding)
        try:
            yield
        finally:
            undo()
            session.clock.listeners.remove(step)
        self.enter("writing" if self.first else DONE)

    def beat(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "video": self.videos,
            "phase": self.phase,
            "step": self.step,
            "steps": self.steps,
            "count": self._count(),
        }

    def _move(self, phase: str, step: int | None) -> None:
        self.phase, self.step = phase, step
        for listener in self.listeners:
            listener()


def described(phase: str, step: int | None, steps: int | None) -> str:
    """A phase and a step as messages name them; steps are counted from 1 there."""
    if step is None:
        return phase
    return f"step {step + 1} of {steps} ({phase})"
