"""A pipeline's generation with checkpoints, going on from the one that lies there."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.replication import share
from lvsa.launch.checkpoint.encoded import encoded
from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.keeper import Keeper
from lvsa.launch.checkpoint.loop import DenoisingLoop, LoopState
from lvsa.launch.checkpoint.values import Packed, unpack
from lvsa.launch.processes.runtime import Runtime

logger = logging.getLogger(__name__)


@contextmanager
def going_on(
    pipe: Any,
    adapter: ModelAdapter,
    generators: Iterable[torch.Generator],
    runtime: Runtime,
    folder: CheckpointFolder | None,
    seconds: float | None,
) -> Iterator[DenoisingLoop]:
    """Follows one call of a pipeline, which LVSA is enabled on after this.

    Args:
        pipe, adapter: the pipeline, and what it differs in from others.
        generators: that the call is given.
        runtime: this process; the first reads and writes for all.
        folder: of the checkpoint, on the first rank.
        seconds: between two checkpoints, see `keeper.Pace`.

    Raises:
        CheckpointError: on every rank, for a checkpoint that cannot be read or does not fit.
    """
    start, made = None, None
    if runtime.from_first(folder is not None and folder.steps > 0):
        read = runtime.on_first(lambda: None if folder is None else folder.read())
        state = share(None if read is None else vars(read[0]), runtime.group)
        start = LoopState(**unpack(Packed(**state), runtime.device))
        made = None if read is None else unpack(read[1], runtime.device)
    transformers = adapter.transformers(pipe)
    cached = [name for name, t in transformers.items() if getattr(t, "is_cache_enabled", False)]
    loop = DenoisingLoop(pipe, transformers.values(), generators, runtime.device, start)
    methods = adapter.replicated_methods if runtime.first else ()
    with encoded(pipe, methods, made) as notes, loop.followed():
        keeper = None
        if folder is not None and cached:
            logger.warning(
                "no checkpoints of the denoising: the step cache of %s keeps outputs of earlier "
                "steps on every rank, which are not saved",
                " and ".join(cached),
            )
        elif folder is not None:
            keeper = Keeper(folder, seconds, notes if made is None else None)
            loop.listener = keeper.keep
        try:
            yield loop
        finally:
            if keeper is not None:
                keeper.wait()
