"""The processes of a job: who this one is, where it runs, how it speaks and how it fails."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from torch import distributed as dist
from tqdm.contrib.logging import logging_redirect_tqdm

from lvsa.errors import LVSAError, RankMismatch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

USER_ERROR = 2


class SharedError(LVSAError):
    """A user's mistake that every rank raises alike, so that one of them can report it."""


@dataclass
class Runtime:
    """This process among the processes of the job.

    Args:
        rank, world: this process among how many; 0 and 1 without torchrun.
        device: where it computes.
        store: key-value store of the job; None for one process.
    """

    rank: int
    world: int
    device: torch.device
    store: Any = field(default=None, repr=False)
    _mine: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks; None for one process."""
        return dist.group.WORLD if self.world > 1 else None

    def together(self, work: Callable[[], Result]) -> Result:
        """Runs ``work`` on every rank; a user's mistake on one of them stops all alike.

        Raises:
            SharedError: on every rank, with the message of each rank that failed.
        """
        result, problem = None, None
        try:
            result = work()
        except LVSAError as error:
            problem = str(error)
        problems: list[str | None] = [problem]
        if self.world > 1:
            problems = [None] * self.world
            dist.all_gather_object(problems, problem)
        failed = {rank: text for rank, text in enumerate(problems) if text is not None}
        if len(failed) == self.world and len(set(failed.values())) == 1:
            raise SharedError(failed[0])
        if failed:
            raise SharedError("\n".join(f"rank {rank}: {text}" for rank, text in failed.items()))
        return result  # type: ignore[return-value]

    def on_first(self, work: Callable[[], Result]) -> Result | None:
        """Runs ``work`` on the first rank alone; a user's mistake there stops all alike.

        Returns:
            Its result on the first rank, None on the others.

        Raises:
            SharedError: on every rank, with the message of the first.
        """
        result, problem = None, None
        if self.first:
            try:
                result = work()
            except LVSAError as error:
                problem = str(error)
        problem = self.from_first(problem)
        if problem is not None:
            raise SharedError(problem)
        return result

    def from_first(self, value: Result) -> Result:
        """The first rank's value, on every rank; it travels as a pickle."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, group_src=0, group=self.group)
        return box[0]

    def share(self, mine: dict[str, Any]) -> None:
        """Leaves facts about this rank for the first one, which may be busy decoding."""
        self._mine = mine
        if self.world > 1:
            self.store.set(f"lvsa/rank/{self.rank}", json.dumps(mine))

    def collect(self) -> list[dict[str, Any]]:
        """On the first rank: what every rank has shared, waiting for those that have not yet."""
        if self.world == 1:
            return [self._mine]
        return [json.loads(self.store.get(f"lvsa/rank/{rank}")) for rank in range(self.world)]


def rank_of_environment() -> int:
    """RANK as torchrun sets it; 0 without."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def start(device: str, timeout: float) -> Iterator[Runtime]:
    """Joins the processes that torchrun started, and leaves them at the end.

    Args:
        device: auto, cuda or cpu.
        timeout: of collectives, seconds.

    Raises:
        LVSAError: where CUDA is asked for and missing, or ranks outnumber the GPUs of a node.
    """
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not timeout > 0:
        raise LVSAError(f"--timeout is {timeout} seconds; it must be greater than 0")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        with logging_redirect_tqdm():
            yield Runtime(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    limit = timedelta(seconds=timeout)
    store, rank, world = next(iter(dist.rendezvous("env://", timeout=limit)))
    store.set_timeout(limit)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("lvsa-group", store),
        rank=rank,
        world_size=world,
        timeout=limit,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    with logging_redirect_tqdm():
        yield Runtime(rank, world, chosen, store)
    # Only after success: it waits for the other ranks, who after a failure may wait for this one.
    # A process that fails just ends, and torchrun ends the others.
    dist.destroy_process_group()


def pick_device(device: str, local_rank: int) -> torch.device:
    """The device of the process with this rank on its node; errors as `start`."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if n_gpus else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not n_gpus:
        raise LVSAError("--device cuda: PyTorch sees no CUDA device here; allowed: auto, cpu")
    if local_rank >= n_gpus:
        raise LVSAError(
            f"local rank {local_rank} has no GPU: this node has {n_gpus}; start at most "
            f"--nproc_per_node={n_gpus}"
        )
    return torch.device("cuda", local_rank)


def set_up_logging(rank: int) -> None:
    """The first rank tells what happens; the others only what goes wrong, with their number."""
    first = rank == 0
    form = "%(levelname)s: %(message)s" if first else f"[rank {rank}] %(levelname)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, stream=sys.stderr, force=True)
    # A setting without effect is said once, not once per rank.
    logging.getLogger("lvsa").setLevel(logging.INFO if first else logging.ERROR)
    # torch renamed a collective that diffusers' hooks still call by its old name.
    warnings.filterwarnings("ignore", message=".*all_gather_tensor.*", category=FutureWarning)
    if not first:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        logging.getLogger("transformers").setLevel(logging.ERROR)


def run_reporting(work: Callable[[], object]) -> int:
    """The exit code of ``work``; user errors become a message, others keep their traceback."""
    rank = rank_of_environment()
    try:
        work()
    except LVSAError as error:
        # Every rank has the same to say: one of them does.
        if rank == 0 or not isinstance(error, SharedError | RankMismatch):
            logger.error("%s%s", "" if rank == 0 else f"rank {rank}: ", error)
        return USER_ERROR
    except Exception:
        logger.error("rank %d of %s failed", rank, os.environ.get("WORLD_SIZE", "1"))
        raise
    return 0
