"""LVSA at work on a pipeline: what is installed, and the one stack that takes it away again."""

from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakSet

from torch import distributed as dist
from torch import nn

from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.rope_patch import RIFLExPatch
from lvsa.attention import LVSAttention
from lvsa.clock import StepClock
from lvsa.errors import LVSAError
from lvsa.finite import FiniteCheck
from lvsa.masks import KnownMasks
from lvsa.wrapping import Undo

# Pipelines and transformers that have a session.
_HELD: WeakSet[Any] = WeakSet()


class LVSASession:
    """LVSA at work on a pipeline. Leaving its context, or `remove`, restores the pipeline.

    Args:
        adapter: what differs between models.
        attention: the engine, which all attention modules of the pipeline share. Its pattern and
            grid are those of the video at work; a session without sizes has none before the first
            forward.
        transformers: the pipeline's transformers by attribute name, as they were found.
        group: all ranks that make the video; None for one process.
        deciding: those that hold parts of what one process has in one forward of a transformer.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        attention: LVSAttention,
        transformers: dict[str, nn.Module],
        group: dist.ProcessGroup | None = None,
        deciding: dist.ProcessGroup | None = None,
    ) -> None:
        self.adapter, self.attention, self.transformers = adapter, attention, transformers
        self.group, self.deciding = group, deciding
        self.clock = StepClock(self._set_step)
        self.finite = FiniteCheck()
        """Holds the latents of every step against infinity and not-a-number."""
        self.masks = KnownMasks()
        """Which text is valid, for all processors."""
        self.blocks = 0
        """Attention modules that LVSA was installed on."""
        self.riflex: RIFLExPatch | None = None
        """What RIFLEx changed for the video at work; None without RIFLEx."""
        self._steps = ExitStack()

    def hold(self, pipe: Any) -> None:
        """Takes a pipeline and its transformers, until `remove`.

        Raises:
            LVSAError: where one of them is taken by another session.
        """
        for name, thing in {"pipeline": pipe, **self.transformers}.items():
            if thing in _HELD:
                raise LVSAError(
                    f"LVSA is enabled on this {name} ({type(thing).__name__}) already; end that "
                    "session first: leave its with-block or call its remove()"
                )
            _HELD.add(thing)
            self.undo_later(partial(_HELD.discard, thing))

    def undo_later(self, undo: Undo) -> None:
        """Adds a step to what `remove` does. Steps run in reverse order, whatever others raise."""

        def step(
            kind: type[BaseException] | None,
            first: BaseException | None,
            traceback: TracebackType | None,
        ) -> None:
            try:
                undo()
            except BaseException as error:
                if first is None:
                    raise
                # The first error is the one to see; the steps after it may fail of its cause.
                first.add_note(f"a later step failed as well: {error!r}")

        self._steps.push(step)

    def remove(self) -> None:
        """Gives the pipeline back as it was; a second call does nothing.

        Every step runs, even if one before it failed; the first error is raised at the end.
        """
        self._steps.close()

    def __enter__(self) -> "LVSASession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _set_step(self, step: int) -> None:
        self.attention.step = step
