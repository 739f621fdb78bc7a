"""Writes checkpoints beside the denoising, as often as it costs next to nothing."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lvsa.launch.checkpoint.encoded import Made
from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.loop import LoopState
from lvsa.launch.checkpoint.values import Packed, Unsaveable, pack
from lvsa.launch.records.output import OutputError
from lvsa.launch.records.provenance import Later

logger = logging.getLogger(__name__)

SHARE = 0.01
"""Share of the time that checkpoints may cost, unless the user says how often they are due."""
BYTES_PER_SECOND = 2e9
"""At which the first one is expected to be copied; those after it are measured."""


@dataclass
class Pace:
    """When a checkpoint is due.

    Args:
        seconds: between two of them; 0 for every step, None for what costs `SHARE` of the time.
        cost: seconds that the last one took from the denoising.
        last: when that was, by `time.perf_counter`.
    """

    seconds: float | None
    cost: float = 0.0
    last: float = 0.0

    def due(self, size: int, now: float) -> bool:
        """Whether one of ``size`` bytes may be made now."""
        wait = self.seconds
        if wait is None:
            wait = max(self.cost, size / BYTES_PER_SECOND) / SHARE
        return now - self.last >= wait


class Keeper:
    """Keeps the state of a denoising loop on the disk; told of every step.

    Args:
        folder: where to.
        seconds: as for `Pace`.
        inputs: what the pipeline encoded, complete when the first step is done; None where the
            folder holds it already.
    """

    def __init__(
        self, folder: CheckpointFolder, seconds: float | None, inputs: Made | None
    ) -> None:
        self.folder, self.inputs = folder, inputs
        self.pace = Pace(seconds, last=time.perf_counter())
        self._writing: Later[float] | None = None
        self._copies: Packed | None = None
        self._over = self._complained = False

    def keep(self, state: Callable[[], LoopState], device: torch.device) -> None:
        """Begins a checkpoint if one is due. What cannot be kept is said once, and ends no job.

        Args:
            state: makes the state after the step that has just run.
            device: where the pipeline computes.
        """
        every_step = self.pace.seconds == 0
        if self._over or (self._busy() and not every_step):
            return
        began = time.perf_counter()
        try:
            after = state()
            packed = pack(vars(after))
            inputs = None if self.inputs is None else pack(list(self.inputs))
        except Unsaveable as error:
            self._over = True
            logger.warning("this job cannot be checkpointed: %s", error)
            return
        if not self.pace.due(packed.bytes + (0 if inputs is None else inputs.bytes), began):
            return
        self.wait()
        # New memory costs more than the copy into it.
        packed = self._copies = packed.copied(self._copies)
        inputs = None if inputs is None else inputs.copied()
        arrived = None
        if device.type != "cpu":
            arrived = torch.Event(device)
            arrived.record()
        self.pace.last, self.pace.cost = began, time.perf_counter() - began
        self._writing = Later(lambda: self._write(after.steps, packed, inputs, arrived))

    def wait(self) -> None:
        """Waits for what is being written."""
        if self._writing is not None:
            self.pace.cost += self._writing.result()
            self._writing = None

    def _busy(self) -> bool:
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def _write(
        self, steps: int, packed: Packed, inputs: Packed | None, arrived: torch.Event | None
    ) -> float:
        """Writes a checkpoint; returns the seconds that this took from the denoising.

        They are those of a processor, where processors denoise as well.
        """
        started = time.thread_time()
        if arrived is not None:
            arrived.synchronize()
        try:
            # The latents, which were packed first. A job that goes on from what are no longer
            # numbers would never come to anything. A sum is one only where all of them are.
            latents = next(iter(packed.tensors.values()))
            if math.isfinite(latents.sum(dtype=torch.float32)):
                if inputs is not None:
                    self.folder.write_inputs(inputs)
                    self.inputs = None
                self.folder.write_state(packed, steps)
        except OutputError as error:
            if not self._complained:
                self._complained = True
                logger.warning("step %d is not kept, and the job goes on: %s", steps, error)
        return time.thread_time() - started if arrived is None else 0.0
