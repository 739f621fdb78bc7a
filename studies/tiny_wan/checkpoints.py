"""Checkpoints written whole or not at all."""

import logging
from pathlib import Path
from typing import Any

import torch

from lvsa.errors import LVSAError
from lvsa.launch.records.output import written_whole

logger = logging.getLogger(__name__)


def save(state: dict[str, Any], path: Path) -> None:
    """Writes ``state`` beside ``path``, then puts it in its place in one step."""
    with written_whole(path) as part:
        torch.save(state, part)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None where there is none."""
    if not path.exists():
        return None
    logger.info("reading %s", path)
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def require(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``.

    Raises:
        LVSAError: where there is none.
    """
    state = load(path)
    if state is None:
        raise LVSAError(f"no checkpoint {path}: the stage that writes it has not run")
    return state
