"""This process among those of the job, as torchrun, mpirun or srun tell it in the environment.

Processes that each believe to be alone would all make the whole video, into one file. So whatever
started more than one of them is either understood or refused.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lvsa.errors import LVSAError
from lvsa.launch.processes.slurm import first_node_address

TORCHRUN = "start it with torchrun: torchrun --nproc_per_node=GPUS launch/generate.py …"
# Where the first rank listens, unless MASTER_PORT says otherwise: torchrun's default, and the
# thousand above it for jobs that share a node.
PORT, PORTS = 29500, 1000


@dataclass(frozen=True)
class Place:
    """This process among those of the job.

    Args:
        rank, world: its number among how many.
        local_rank: its number on its node.
        address, port: where the first rank listens; None for one process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str | None = None
    port: int | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def as_environment(self) -> dict[str, str]:
        """The variables that torchrun sets and PyTorch reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": str(self.address),
            "MASTER_PORT": str(self.port),
        }


@dataclass(frozen=True)
class Launcher:
    """Names of the variables that a launcher sets; of several names the first that is there.

    Args:
        command: what a user calls.
        rank, world, local_rank: numbers as in `Place`.
        nodes: number of nodes.
        local_world: number of processes on this node.
        job: what tells two jobs on a node apart.
    """

    command: str
    rank: str
    world: tuple[str, ...]
    local_rank: tuple[str, ...]
    nodes: str = ""
    local_world: str = ""
    job: tuple[str, ...] = ()


TORCH = Launcher("torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",))
SLURM = Launcher(
    "srun",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS",),
    ("SLURM_LOCALID",),
    nodes="SLURM_STEP_NUM_NODES",
    job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
)
# The first whose rank is there counts: torchrun may run under srun, and mpirun starts by srun.
LAUNCHERS = (
    TORCH,
    Launcher(
        "mpirun",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_world="OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE",),
    ),
    Launcher(
        "mpiexec",
        "PMI_RANK",
        ("PMI_SIZE", "SLURM_STEP_NUM_TASKS"),
        ("MPI_LOCALRANKID", "SLURM_LOCALID"),
        nodes="SLURM_STEP_NUM_NODES",
        local_world="MPI_LOCALNRANKS",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
    SLURM,
)


def place_of(environment: Mapping[str, str]) -> Place:
    """This process's place; alone where no launcher has set its variables.

    Raises:
        LVSAError: for variables that contradict one another, or do not say enough.
    """
    launcher = next((known for known in LAUNCHERS if known.rank in environment), None)
    if launcher is None:
        for name in (*TORCH.world, *TORCH.local_rank):
            if name in environment:
                raise LVSAError(
                    f"{name} is {environment[name]!r}, but RANK is not set; unset it, or {TORCHRUN}"
                )
        return Place()
    rank = _number(launcher, (launcher.rank,), environment)
    if launcher is SLURM and _in_batch_script(environment):
        return Place()
    world = _number(launcher, launcher.world, environment)
    if rank >= world:
        raise LVSAError(f"{launcher.rank} is {rank}; allowed: 0 to {world - 1}, of {world} ranks")
    if world == 1:
        return Place()
    local_rank = _number(launcher, launcher.local_rank, environment)
    return Place(rank, world, local_rank, *_first_rank(launcher, world, environment))


def rank_of(environment: Mapping[str, str]) -> int:
    """This process's number as far as it can be told without an error; else 0."""
    texts = (environment.get(launcher.rank, "") for launcher in LAUNCHERS)
    return next((int(text) for text in texts if text.isdecimal()), 0)


def leave_for_torchrun(message: str) -> None:
    """torchrun's own last words are long; they close with what its processes leave for them."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        # In whole seconds; torchrun shows the message of the process that failed first.
        left = {"message": message, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": left}))


def _in_batch_script(environment: Mapping[str, str]) -> bool:
    """Whether this is the script of a Slurm job for one task, outside of any step of srun."""
    in_step = "SLURM_STEP_NUM_TASKS" in environment
    alone = environment.get("SLURM_PROCID") == "0" and environment.get("SLURM_NTASKS", "1") == "1"
    return "SLURM_JOB_ID" in environment and alone and not in_step


def _first_rank(launcher: Launcher, world: int, environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port where the first rank listens."""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    one_node = environment.get(launcher.nodes) == "1" or environment.get(
        launcher.local_world
    ) == str(world)
    if address is None:
        address = "127.0.0.1" if one_node else first_node_address(environment)
    if address is None or (port is None and launcher is TORCH):
        raise LVSAError(
            f"{launcher.command} started {world} processes, but MASTER_ADDR and MASTER_PORT do not "
            f"say where the first of them listens; set them, or {TORCHRUN}"
        )
    if port is None:
        job = ".".join(environment.get(name, "") for name in launcher.job)
        return address, PORT + zlib.crc32(job.encode()) % PORTS
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise LVSAError(f"MASTER_PORT is {port!r}; it must be a number from 1 to {2**16 - 1}")
    return address, int(port)


def _number(launcher: Launcher, names: tuple[str, ...], environment: Mapping[str, str]) -> int:
    name = next((name for name in names if name in environment), None)
    if name is None:
        raise LVSAError(
            f"{launcher.rank} is {environment[launcher.rank]!r}, but {' or '.join(names)} is not "
            f"set; {TORCHRUN}"
        )
    text = environment[name]
    if not text.isdecimal():
        raise LVSAError(f"{name} is {text!r}; it must be a whole number. If in doubt, {TORCHRUN}")
    return int(text)
