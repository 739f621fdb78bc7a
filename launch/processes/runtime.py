"""The processes of a job at work: the process group, and what they tell one another."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from tqdm.contrib.logging import logging_redirect_tqdm

from lvsa.errors import LVSAError
from lvsa.launch.config import ProcessesConfig
from lvsa.launch.processes.devices import collective_backends, pick_device
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.meeting import Guard, meet, own_address
from lvsa.launch.processes.progress import Progress
from lvsa.launch.processes.reporting import SharedError, speak_for_replica
from lvsa.launch.processes.verdict import ALONE_LIMIT, ARRIVAL
from lvsa.launch.processes.watch import Watch
from lvsa.mesh import MeshSizes, VideoMesh

Result = TypeVar("Result")

# Guards notice a rank that hangs. Should they not, collectives end by themselves after the longest
# time that one may work while the others wait, and these seconds.
MARGIN = 600.0
# For what the first rank may still decode and write, or what other replicas make.
LONGEST = timedelta(days=30)


@dataclass
class Runtime:
    """This process among those of the job, or of its replica: see `of_replica`.

    Args:
        rank, world: this process among how many; 0 and 1 for one alone.
        device: where it computes.
        store: their key-value store; None for one process of a job.
        progress: where this rank is.
        watch: what guards it.
        replica, replicas: which of how many these processes are; 0 of 1 for all of a job.
    """

    rank: int
    world: int
    device: torch.device
    store: Any = field(default=None, repr=False)
    progress: Progress = field(default_factory=Progress, repr=False)
    watch: Watch | None = field(default=None, repr=False)
    replica: int = 0
    replicas: int = 1
    _group: dist.ProcessGroup | None = field(default=None, repr=False)
    _mine: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    @property
    def shown(self) -> bool:
        """Whether bars show how far this rank is: on a terminal there is room for one's."""
        return self.first and self.progress.shown

    @property
    def number(self) -> int:
        """Of this rank in the whole job."""
        return self.replica * self.world + self.rank

    @property
    def all_ranks(self) -> int:
        """Number of ranks of the whole job."""
        return self.replicas * self.world

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks; None for one process."""
        return (self._group or dist.group.WORLD) if self.world > 1 else None

    @property
    def lost(self) -> frozenset[int]:
        """Replicas of which no process is left."""
        return frozenset() if self.watch is None else self.watch.lost

    def of_replica(self, sizes: MeshSizes, mesh: DeviceMesh | None) -> "Runtime":
        """This process among those that make the same videos: all of them without replicas.

        Args:
            sizes: of the job's mesh.
            mesh: of these sizes. All ranks must call this.
        """
        if sizes.replica == 1:
            return self
        replica, rank = divmod(self.rank, sizes.video)
        self.progress.first = rank == 0
        if rank == 0 and replica:
            speak_for_replica(replica)
        return replace(
            self,
            rank=rank,
            world=sizes.video,
            store=dist.PrefixStore(f"lvsa/replica-{replica}", self.store),
            replica=replica,
            replicas=sizes.replica,
            _group=VideoMesh.of(mesh).video,
        )

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
            dist.all_gather_object(problems, problem, group=self.group)
        first = self.number - self.rank
        failed = {rank: text for rank, text in enumerate(problems, first) if text is not None}
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

    @contextmanager
    def holding(self, block: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """Is in another block on the first rank; where that cannot be entered, all stop alike."""
        with ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(block()))
            yield

    def from_first(self, value: Result) -> Result:
        """The first rank's value, on every rank; it travels as a pickle."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, group_src=0, group=self.group)
        return box[0]

    def patiently(self, name: str, work: Callable[[], Result]) -> Result:
        """What ``work`` returns on the first rank, on every rank, however long that takes.

        Args:
            name: of the result, which is made once under it.
            work: runs on the first rank alone; returns what JSON holds.
        """
        if self.world == 1:
            return work()
        key = f"lvsa/{name}"
        if self.first:
            self.store.set(key, json.dumps(work()))
        self.store.wait([key], LONGEST)
        result: Result = json.loads(self.store.get(key))
        return result

    def share(self, name: str, mine: dict[str, Any]) -> None:
        """Leaves facts about this rank for the first one, which may be busy decoding.

        Args:
            name: of the facts, which are shared once under it.
        """
        self._mine = mine
        if self.world > 1:
            self.store.set(f"lvsa/{name}/{self.rank}", json.dumps(mine))

    def collect(self, name: str) -> list[dict[str, Any]]:
        """On the first rank: what every rank has shared, waiting for those that have not yet."""
        if self.world == 1:
            return [self._mine]
        return [json.loads(self.store.get(f"lvsa/{name}/{rank}")) for rank in range(self.world)]


@contextmanager
def start(config: ProcessesConfig, place: Place, watch: Watch) -> Iterator[Runtime]:
    """Joins the other processes of the job, and leaves them when all have done their work.

    Raises:
        LVSAError: where the device that is asked for is missing, ranks outnumber the devices of a
            node, or the first rank cannot listen.
    """
    device = pick_device(config.device, place.local_rank)
    if not place.first:
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
            logging.getLogger(library.__name__).setLevel(logging.ERROR)
    if place.world == 1:
        with logging_redirect_tqdm():
            yield Runtime(0, 1, device, progress=watch.progress, watch=watch)
        watch.finish()
        return
    # MPS has one device, and no choice.
    getattr(torch.get_device_module(device), "set_device", lambda _: None)(device)
    os.environ.update(place.as_environment())
    limit = timedelta(seconds=config.timeout)
    arrival = timedelta(seconds=max(config.timeout, ARRIVAL))
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=arrival)))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        if place.first and isinstance(error, dist.DistStoreError):
            raise LVSAError(
                f"rank 0 of {place.world} listens at {place.address}:{place.port}, and not all "
                f"others have come within {arrival.total_seconds():g} s: {error}"
            ) from error
        raise LVSAError(
            f"rank {place.rank} of {place.world} finds no way to {place.address}:{place.port}, "
            f"where the first rank listens (MASTER_ADDR, MASTER_PORT): {error}"
        ) from error
    store.set_timeout(limit)
    watch.limit(config.timeout)
    # Whoever has not come yet is judged by the first rank's guard from now on.
    own: Guard | None = [own_address(place), *watch.listen()] if place.first else None
    store, guard = meet(store, place, arrival, own)
    if not place.first and guard is not None:
        watch.join(*guard)
    dist.init_process_group(
        collective_backends(device.type),
        store=dist.PrefixStore("lvsa-group", store),
        rank=place.rank,
        world_size=place.world,
        timeout=timedelta(seconds=max(config.timeout, ALONE_LIMIT) + MARGIN),
        device_id=None if device.type == "cpu" else device,
    )
    with logging_redirect_tqdm():
        yield Runtime(place.rank, place.world, device, store, watch.progress, watch)
    # The first rank may decode and write for hours yet. A rank that left before would take its
    # node's torchrun with it, and with that perhaps the store.
    watch.finish()
    if not watch.lost:
        # Together, which those of a lost replica cannot.
        dist.destroy_process_group()
