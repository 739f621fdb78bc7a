"""Checkpoints written whole or not at all."""

import logging
from pathlib import Path
from typing import Any

import torch

from lvsa.launch.output import written_whole

logger = logging.getLogger(__name__)


def save(state: dict[str, Any], path: Path) -> None:
    """Writes ``state`` beside ``path``, then puts it in its place in one step."""
    with written_whole(path) as part:
        torch.save(state, part)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None where there is none."""
    if not path.exists():
        return None
    logger.info("going on from %s", path)
    return dict(torch.load(path, map_location="cpu", weights_only=True))
