"""A pipeline's generation with checkpoints, going on from the one that lies there."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lvsa.adapters.install.replication import share
from lvsa.launch.checkpoint.encoded import encoded
from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.keeper import Keeper
from lvsa.launch.checkpoint.loop import DenoisingLoop, LoopState
from lvsa.launch.checkpoint.values import Packed, unpack
from lvsa.launch.job import Job
from lvsa.launch.processes.runtime import Runtime

logger = logging.getLogger(__name__)


@contextmanager
def going_on(
    pipe: Any,
    job: Job,
    generator: torch.Generator,
    folder: CheckpointFolder,
    runtime: Runtime,
) -> Iterator[DenoisingLoop]:
    """Follows one call of a pipeline, which LVSA is enabled on after this.

    Args:
        pipe: the pipeline of the job.
        generator: that the call is given.
        folder: of the checkpoint.
        runtime: this process; the first reads and writes for all.

    Raises:
        CheckpointError: on every rank, for a checkpoint that cannot be read or does not fit.
    """
    start, made = None, None
    if runtime.from_first(runtime.on_first(lambda: folder.steps)):
        read = runtime.on_first(folder.read)
        state = share(None if read is None else vars(read[0]), runtime.group)
        start = LoopState(**unpack(Packed(**state), runtime.device))
        made = None if read is None else unpack(read[1], runtime.device)
        # Others that run these methods take what the first one gets: they only must not run them.
        names = runtime.from_first(None if made is None else [name for name, _ in made])
        if not runtime.first and names is not None:
            made = [(name, None) for name in names]
    transformers = job.adapter.transformers(pipe)
    loop = DenoisingLoop(pipe, transformers.values(), [generator], runtime.device, start)
    with encoded(pipe, job.adapter.replicated_methods, made) as notes, loop.followed():
        keeper = None
        if runtime.first and can_be_kept(transformers):
            seconds = job.config.checkpoint.checkpoint_seconds
            keeper = Keeper(folder, seconds, notes if made is None else None)
            loop.listener = keeper.keep
        try:
            yield loop
        finally:
            if keeper is not None:
                keeper.wait()


def can_be_kept(transformers: Mapping[str, Any]) -> bool:
    """Whether all that a step depends on can be saved; says why not."""
    cached = [name for name, t in transformers.items() if getattr(t, "is_cache_enabled", False)]
    if cached:
        logger.warning(
            "no checkpoints of the denoising: the step cache of %s keeps outputs of earlier steps "
            "on every rank, which are not saved",
            " and ".join(cached),
        )
    return not cached
