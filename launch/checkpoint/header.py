"""The header of a file of ours, which says what it is of; read without torch."""

import json
import struct
from pathlib import Path
from typing import Any

from lvsa.errors import CheckpointError

HEADER = "lvsa"
"""Entry of a safetensors file's metadata that holds our JSON."""
# What the job that kept latents was to do, which is no matter for decoding them.
OF_THEIR_JOB = (
    "output", "overwrite", "show_mask", "dry_run", "ranks", "keep_latents", "decode",
    "lora", "cache", "compile", "offload", "shard_weights", "profile",
)  # fmt: skip


def read_facts(path: Path) -> dict[str, Any]:
    """The facts about a file's contents.

    Raises:
        CheckpointError: for a file that cannot be read or is not one of ours.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("it has no header of safetensors")
            facts: dict[str, Any] = json.loads(
                json.loads(file.read(length))["__metadata__"][HEADER]
            )["facts"]
        return facts
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def settings_of_latents(path: Path) -> dict[str, Any]:
    """The settings of a video whose latents were kept, by the keys of a configuration file.

    Raises:
        CheckpointError: for a file that is none of ours.
    """
    facts = read_facts(path)
    try:
        settings = dict(facts["record"]["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no latents of a video") from error
    return {name: value for name, value in settings.items() if name not in OF_THEIR_JOB}
