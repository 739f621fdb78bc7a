"""Ranks under guard in processes of their own, without torch: each starts in a moment."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
import ctypes, json, os, signal, sys, time
from pathlib import Path

from lvsa.errors import LVSAError
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.watch import watched
from lvsa.launch.records.temporary import held

rank, world, timeout, folder = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
meeting = Path(folder) / "meeting"
LOGS = Path(folder) / "logs" if "LOGS" in os.environ else None


def die(number):
    os.kill(os.getpid(), number)


def deadlock():
    # Inside C, which no signal handler of Python's interrupts.
    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


with watched(Place(rank, world, rank), LOGS) as watch:
    watch.limit(timeout)
    if rank == 0:
        draft = meeting.with_suffix(".draft")
        draft.write_text(json.dumps(watch.listen()))
        draft.rename(meeting)
    else:
        while not meeting.exists():
            time.sleep(0.01)
        watch.join("127.0.0.1", *json.loads(meeting.read_text()))
    watch.progress.enter("loading")
    exec(os.environ.get(f"DO_{rank}", ""))
    watch.finish()
"""


@dataclass(frozen=True)
class Ended:
    """How a rank ended: exit code, what it said, and seconds since all were started."""

    code: int
    said: str
    seconds: float


@dataclass
class Job:
    """Ranks that run.

    Args:
        processes: of the ranks.
        folder: theirs, with `tmp` for their temporary files.
    """

    processes: list[subprocess.Popen[str]]
    folder: Path
    started: float

    def end(self, timeout: float = 30) -> list[Ended]:
        """Waits for all of them, in turn."""
        ended = []
        for process in self.processes:
            _, said = process.communicate(timeout=timeout)
            ended.append(Ended(process.returncode, said, time.monotonic() - self.started))
        return ended

    @property
    def logs(self) -> dict[str, str]:
        """Text of the log files that are left, by their names."""
        return {path.name: path.read_text() for path in (self.folder / "tmp").glob("lvsa-*")}


def guarded(folder: Path, *work: str, timeout: float = 30, **environment: str) -> Job:
    """Starts one rank for each piece of Python code.

    Args:
        folder: for what they leave.
        work: of each rank, between two messages to its guard that it is there and that it is done.
        timeout: as ``--timeout``.
        environment: further variables of theirs.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    variables = {f"DO_{rank}": code for rank, code in enumerate(work)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(len(work)), str(timeout), str(folder)],
            stderr=subprocess.PIPE, text=True,
            env={**inherited, **variables, **environment, "TMPDIR": str(folder / "tmp")},
        )
        for rank in range(len(work))
    ]  # fmt: skip
    return Job(processes, folder, started)
