"""Where the checkpoint of a job lies, what is in it, and which lie beside it."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint import file
from lvsa.launch.checkpoint.header import read_facts
from lvsa.launch.checkpoint.identity import Identity, differences
from lvsa.launch.checkpoint.values import Packed
from lvsa.launch.records.output import write_record
from lvsa.launch.records.temporary import remove_abandoned_parts

logger = logging.getLogger(__name__)

FOLDER = ".checkpoints"
"""Folder of all checkpoints, in the output folder. It is gone when no job is unfinished."""
JOB, INPUTS, STATE = "job.json", "inputs.safetensors", "state.safetensors"
LATENTS = "latents.safetensors"
MOST_SHOWN = 4
"""Differences that a message names."""


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoint of one job; nothing is made before something is written.

    Args:
        parent: the output folder of the job.
        identity: of the job.
    """

    parent: Path
    identity: Identity

    @property
    def path(self) -> Path:
        """The folder of this job alone."""
        return self.parent / FOLDER / self.identity.digest

    @property
    def latents(self) -> Path:
        """The file of the denoised latents."""
        return self.path / LATENTS

    @property
    def decodes_only(self) -> bool:
        """Whether denoising is done, and its latents are there."""
        return self.latents.is_file()

    @property
    def steps(self) -> int:
        """Denoising steps that a checkpoint holds; 0 without one.

        Raises:
            CheckpointError: for a file that cannot be read.
        """
        state = self.path / STATE
        return int(read_facts(state)["steps"]) if state.is_file() else 0

    def write_inputs(self, packed: Packed) -> None:
        """What the pipeline encoded and drew, once, before the first state."""
        write_record(self.path / JOB, self.identity.facts)
        file.write(self.path / INPUTS, packed, {})

    def write_state(self, packed: Packed, steps: int) -> None:
        """The state after so many steps, in the place of an earlier one."""
        file.write(self.path / STATE, packed, {"steps": steps})

    def write_latents(self, packed: Packed, record: dict[str, Any]) -> None:
        """The denoised latents with the record so far; they make the rest superfluous."""
        write_record(self.path / JOB, self.identity.facts)
        file.write(self.latents, packed, {"record": record})
        for name in (STATE, INPUTS):
            (self.path / name).unlink(missing_ok=True)

    def read(self) -> tuple[Packed, Packed]:
        """State and inputs.

        Raises:
            CheckpointError: for a file that is missing or cannot be read.
        """
        try:
            return file.read(self.path / STATE)[0], file.read(self.path / INPUTS)[0]
        except CheckpointError as error:
            raise CheckpointError(f"{error}; --fresh begins anew") from error

    def remove(self) -> None:
        """Takes the checkpoint away, and the folder of all where it was the last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def tidy(self) -> None:
        """Takes away what a job left that was killed while it wrote."""
        remove_abandoned_parts(self.path)

    def others(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Checkpoints under the same name that are of other jobs, and what those are."""
        for path in sorted(self.path.parent.glob(f"*/{JOB}")):
            try:
                facts = json.loads(path.read_text(encoding="utf-8"))
                same_name = facts["name"] == self.identity.facts["name"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if path.parent != self.path and same_name:
                yield path.parent, facts


def look(folder: CheckpointFolder, fresh: bool) -> None:
    """Says what there is to go on from, and what is left alone; ``fresh`` removes our own.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
    """
    for path, facts in folder.others():
        differ = differences(facts, folder.identity.facts)
        more = f" and {len(differ) - MOST_SHOWN} more" if len(differ) > MOST_SHOWN else ""
        logger.warning(
            "%s is the checkpoint of another job of this name, and is left alone; it differs in %s",
            path,
            ", ".join(differ[:MOST_SHOWN]) + more,
        )
    if fresh:
        if folder.path.exists():
            logger.info("--fresh: %s is removed", folder.path)
        folder.remove()
        return
    folder.tidy()
    if folder.decodes_only:
        logger.info("denoising was done before: decoding %s (--fresh begins anew)", folder.latents)
    elif steps := folder.steps:
        logger.info("going on after step %d from %s (--fresh begins anew)", steps, folder.path)
