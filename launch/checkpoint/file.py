"""A packed value in one safetensors file, its JSON in the header: written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint.header import HEADER
from lvsa.launch.checkpoint.values import Packed
from lvsa.launch.records.output import written_whole


def write(path: Path, packed: Packed, facts: dict[str, Any]) -> None:
    """Writes a value, whose tensors are on the CPU, and facts about it.

    Raises:
        OutputError: where the system refuses; a file of that name stays as it was.
    """
    text = json.dumps({"facts": facts, "value": packed.plain}, allow_nan=False)
    tensors = {name: tensor.contiguous() for name, tensor in packed.tensors.items()}
    with written_whole(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER: text})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def read(path: Path) -> tuple[Packed, dict[str, Any]]:
    """A value, its tensors on the CPU, and the facts about it.

    Raises:
        CheckpointError: for a file that cannot be read or is not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Packed(text["value"], tensors), text["facts"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
