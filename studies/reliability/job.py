"""One generation of several ranks, as its own processes, with a fault or without."""

import multiprocessing
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from lvsa.launch.generate import main
from lvsa.studies.reliability.faults import Fault, plant

# Imported once; each rank is then there in a moment.
PRELOAD = [
    "torch",
    "torch.distributed",
    "diffusers",
    "transformers",
    "lvsa.adapters.install.enable",
    "lvsa.launch.processes.runtime",
    "lvsa.studies.reliability.job",
]
NAME = "clip"
# Seconds after which a job is given up.
LIMIT = 180.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        codes: exit codes of the ranks, minus the signal for one that was killed.
        said: what they wrote on their terminal.
        seconds: from the fault, or else from the start, to the end of the last process.
        files: what lies in the folder of its output, by paths within.
        struck: whether the fault happened.
    """

    codes: tuple[int | None, ...]
    said: str
    seconds: float
    files: tuple[str, ...]
    struck: bool


def run(folder: Path, world: int, arguments: Sequence[str], fault: Fault | None = None) -> Outcome:
    """Runs a job to its end.

    Args:
        folder: gets the output in ``out``, and what the ranks say.
        world: number of ranks.
        arguments: of the launcher, without those that name the output.
        fault: that is planted.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    marker, out = folder / "struck", folder / "out"
    marker.unlink(missing_ok=True)
    words = [*arguments, "--output-dir", str(out), "--output-name", NAME]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    begun = time.time()
    reader, terminal = context.Pipe(duplex=False)
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, words, terminal, fault, marker))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    terminal.close()
    said, in_time = _until_closed(reader)
    over = time.time()
    for rank in ranks:
        rank.kill()
        rank.join()
    struck = marker.exists()
    start = float(marker.read_text()) if struck else begun
    files = tuple(sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()))
    codes = tuple(rank.exitcode if in_time else None for rank in ranks)
    return Outcome(codes, said, over - start, files, struck)


def _until_closed(reader: Connection) -> tuple[str, bool]:
    """What the ranks and their guards say until the last of them is gone, and whether that came."""
    said, end = b"", time.monotonic() + LIMIT
    while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        data = os.read(reader.fileno(), 1 << 16)
        if not data:
            return said.decode(errors="replace"), True
        said += data
    return said.decode(errors="replace"), False


def _rank(
    rank: int, world: int, port: int, words: list[str], terminal: Connection, fault: Fault | None,
    marker: Path,
) -> None:  # fmt: skip
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    for descriptor in (1, 2):
        os.dup2(terminal.fileno(), descriptor)
    terminal.close()
    # Those of the server that forked this process may not suit a pipe.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if fault is not None:
        plant(fault, rank, marker)
    main(words)
