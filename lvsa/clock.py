"""Which denoising step is about to run, read off the pipeline's scheduler.

A generation begins with ``scheduler.set_timesteps`` and ends each denoising step, however many
guidance passes it had, with one ``scheduler.step``. Counting these calls needs nothing of the
pipeline's code, serves all of its transformers, and starts again at 0 in every generation.
"""

import functools
from collections.abc import Callable
from typing import Any


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
        self._scheduler: Any = None

    def attach(self, scheduler: Any) -> None:
        """Follows this scheduler, and no other any more.

        A scheduler that was swapped in between two generations is attached at the first forward
        of the next one: its timesteps are set by then and no step has been taken, so 0 is right.
        """
        if scheduler is self._scheduler:
            return
        self.detach()
        self._scheduler = scheduler
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        # Pipelines read the signature to learn what a scheduler takes: it must stay to be seen.
        @functools.wraps(set_timesteps)
        def counted_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.restart()
            return result

        @functools.wraps(step)
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._move_to(self.step + 1)
            return result

        # On the instance: other pipelines that use the class keep theirs untouched.
        scheduler.set_timesteps, scheduler.step = counted_set_timesteps, counted_step
        self.restart()

    def restart(self) -> None:
        """A generation begins."""
        self.generations += 1
        self._move_to(0)

    def detach(self) -> None:
        """Gives the scheduler its own methods back."""
        if self._scheduler is not None:
            del self._scheduler.set_timesteps, self._scheduler.step
            self._scheduler = None

    def _move_to(self, step: int) -> None:
        self.step = step
        for listener in self.listeners:
            listener(step)
