"""Work that may fail without an end to the job: all ranks come to know of it, or the job ends."""

import gc
import json
import logging
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed as dist

from lvsa.errors import CommunicationError, LVSAError
from lvsa.launch.processes.runtime import LONGEST, Runtime
from lvsa.launch.processes.watch import of_communication

logger = logging.getLogger(__name__)

# What a request can be the cause of: a mistake in it, memory that it does not fit, a full disk.
# Anything else is a fault of the code, and ends the job.
FAILURES = (ValueError, RuntimeError, OSError, MemoryError)
# How long a rank that failed waits for the others to fail as well, or to finish.
PATIENCE = timedelta(seconds=60)


class LeftAlone(CommunicationError):
    """This rank failed where the others wait for it: they cannot be called back."""


def attempt(runtime: Runtime, name: str, work: Callable[[], object]) -> str | None:
    """Runs ``work``, in which ranks may wait for one another, on every rank.

    Args:
        runtime: this process among the others.
        name: of the work; each is attempted once.
        work: what may fail.

    Returns:
        What went wrong, the same on every rank; None where all was well.

    Raises:
        LeftAlone: where this rank failed and the others neither failed nor finished: they wait for
            it within the work.
        CommunicationError: the same, where it failed since it lost one of the others.
    """
    problem = None
    try:
        work()
    except (CommunicationError, dist.DistError):
        raise
    except FAILURES as error:
        problem = str(error) or type(error).__name__
        if not isinstance(error, LVSAError):
            logger.exception("rank %d of %d failed", runtime.number, runtime.all_ranks)
        try:
            problems = _told(runtime, name, problem)
        except RuntimeError:  # of a store of any kind: they have not come
            lost = CommunicationError if of_communication(error) else LeftAlone
            raise lost(
                f"rank {runtime.number} failed in {name} and the others wait for it: {problem}"
            ) from error
    else:
        problems = _told(runtime, name, None)
    first = runtime.number - runtime.rank
    failed = {rank: text for rank, text in enumerate(problems, first) if text is not None}
    if not failed:
        return None
    # What a failure leaves in memory goes before the next attempt.
    gc.collect()
    if runtime.device.type != "cpu":
        torch.accelerator.empty_cache()
    if len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    return "\n".join(f"rank {rank}: {text}" for rank, text in failed.items())


def _told(runtime: Runtime, name: str, problem: str | None) -> list[str | None]:
    """The problem of every rank, through the store: a collective may be under way."""
    if runtime.world == 1:
        return [problem]
    keys = [f"lvsa/outcome/{name}/{rank}" for rank in range(runtime.world)]
    runtime.store.set(keys[runtime.rank], json.dumps(problem))
    runtime.store.wait(keys, LONGEST if problem is None else PATIENCE)
    return [json.loads(runtime.store.get(key)) for key in keys]
