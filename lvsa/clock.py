"""Which denoising step is about to run, read off the pipeline's scheduler.

A generation begins with ``scheduler.set_timesteps`` and ends each denoising step, however many
guidance passes it had, with one ``scheduler.step``. Counting these calls needs nothing of the
pipeline's code, serves all of its transformers, and starts again at 0 in every generation.
"""

import functools
from collections.abc import Callable
from typing import Any

from lvsa.errors import LVSAError
from lvsa.wrapping import Undo, wrap_method


class StepClock:
    """Counts the denoising steps of one pipeline.

    Args:
        on_step: called with the step about to run whenever it changes; further listeners may be
            added to `listeners`.
    """

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.step = 0
        self.generations = 0
        self.listeners = [on_step]
        self.guards: list[Callable[[], None]] = []
        """Called before the scheduler is; an error of theirs stops the generation there."""
        self.results: list[Callable[[int, Any], None]] = []
        """Called with a step that has run and the latents that the scheduler made of it."""
        self._scheduler: Any = None
        self._attachments = 0
        self._undo: list[Undo] = []

    def attach(self, scheduler: Any) -> None:
        """Follows this scheduler, and no other any more.

        A scheduler that was swapped in between two generations is attached at the first forward
        of the next one: its timesteps are set by then and no step has been taken, so 0 is right.

        Raises:
            LVSAError: where another clock follows the scheduler.
        """
        if scheduler is self._scheduler:
            return
        if follower_of(scheduler) is not None:
            raise LVSAError(
                f"this {type(scheduler).__name__} is followed by another LVSA session; remove that "
                "one first, or give each pipeline a scheduler of its own"
            )
        self.detach()
        self._scheduler = scheduler
        self._attachments += 1
        for name, moved in (("set_timesteps", self.restart), ("step", self._advance)):
            self._undo.append(wrap_method(scheduler, name, self._counted(scheduler, name, moved)))
        self.restart()

    def restart(self) -> None:
        """A generation begins."""
        self.generations += 1
        self._move_to(0)

    def detach(self) -> None:
        """Gives the scheduler its own methods back; a second call does nothing."""
        self._scheduler = None
        while self._undo:
            self._undo.pop()()

    def _counted(self, scheduler: Any, name: str, moved: Callable[[], None]) -> Callable[..., Any]:
        method, attachment = getattr(scheduler, name), self._attachments

        # Pipelines read the signature to learn what a scheduler takes: it must stay to be seen.
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            # Left behind under somebody else's wrapper it counts no more.
            if self._scheduler is not scheduler or self._attachments != attachment:
                return method(*args, **kwargs)
            for guard in self.guards:
                guard()
            result = method(*args, **kwargs)
            if name == "step":
                for listener in self.results:
                    listener(self.step, result[0])
            moved()
            return result

        counted.follower = self  # type: ignore[attr-defined]
        return counted

    def _advance(self) -> None:
        self._move_to(self.step + 1)

    def _move_to(self, step: int) -> None:
        self.step = step
        for listener in self.listeners:
            listener(step)


def follower_of(scheduler: Any) -> StepClock | None:
    """The clock that follows a scheduler."""
    clock = getattr(vars(scheduler).get("step"), "follower", None)
    return clock if isinstance(clock, StepClock) and clock._scheduler is scheduler else None
