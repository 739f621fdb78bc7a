"""A rank under guard: it tells where it is, and ends when it is told to.

A thread speaks with the guard. Signals reach it through a descriptor, so that they end a process
also while the main thread is inside a collective, where Python handles none.
"""

import ctypes
import faulthandler
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread, main_thread
from typing import Any, NoReturn

from lvsa.errors import CommunicationError, LVSAError, RankMismatch
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.lines import Lines
from lvsa.launch.processes.logs import details_into, open_log
from lvsa.launch.processes.progress import DONE, Progress
from lvsa.launch.processes.reporting import SharedError, SomeFailed
from lvsa.launch.processes.verdict import FAILURE, Fault
from lvsa.launch.records import temporary

logger = logging.getLogger(__name__)

GUARD = "import sys; from lvsa.launch.processes.guard import main; main(sys.argv[1:])"
# Seconds between two beats.
BEAT = 0.5
# Seconds after which a rank that reported a failure ends without having been told to.
PATIENCE = 60.0
TORCHELASTIC = "TORCHELASTIC_RUN_ID"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
# Where a call that waits for other ranks is the innermost of Python.
COLLECTIVES = ("distributed_c10d.py", "lvsa/comm.py")
# How the libraries of collectives call themselves in what they raise.
LIBRARIES = ("gloo", "nccl", "xccl", "hccl", "tcpstore")


class Watch:
    """This rank and its guard.

    Args:
        place: of the rank.
        log: file for the details.
        keep_log: whether it stays when all went well.
        terminal: descriptor that the guard writes messages to.
    """

    def __init__(self, place: Place, log: Path, keep_log: bool, terminal: int) -> None:
        self.place = place
        self.progress = Progress(place.first)
        self._parent = os.getppid()
        self._done, self._port, self._sending = Event(), Event(), Lock()
        self._number, self._code = 0, 0
        self.lost: frozenset[int] = frozenset()
        """Replicas that have ended before their work was done; none of their ranks is left."""
        ours, theirs = socket.socketpair()
        self._lines = Lines(ours)
        post = {"rank": place.rank, "world": place.world, "local_rank": place.local_rank,
                "pid": os.getpid(), "log": str(log), "keep_log": keep_log}  # fmt: skip
        self._guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, str(theirs.fileno()), json.dumps(post)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=terminal, env={**os.environ, "PYTHONSAFEPATH": "1"},
        )  # fmt: skip
        theirs.close()
        self._signals, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()
        self.progress.listeners.append(self._beat)
        self._block = ExitStack()

    def __enter__(self) -> "Watch":
        temporary.listeners.append(self._file)
        self._block.callback(temporary.listeners.remove, self._file)
        self._block.enter_context(_signals_to(self._wake))
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, Exception):
            self._fail(error)
        self._block.close()
        self._lines.connection.shutdown(socket.SHUT_WR)
        self._guard.wait()
        self._thread.join()
        for descriptor in (self._signals, self._wake):
            os.close(descriptor)

    def listen(self) -> tuple[int, str]:
        """On the first rank: its guard waits for the others' at this port, and for this token."""
        token = secrets.token_hex(16)
        self._send(listen=token)
        self._port.wait()
        return self._number, token

    def join(self, address: str, port: int, token: str) -> None:
        """On another rank: its guard calls that of the first."""
        self._send(join=[address, port, token])

    def limit(self, timeout: float) -> None:
        """Seconds after which a silent rank, or one that others wait for, has hung."""
        self._send(timeout=timeout)

    def part(self, replicas: int) -> None:
        """On the first rank: from now on no replica waits for another, and one may be lost.

        torchrun ends all processes as soon as one ends with an error, whatever they could yet do.
        """
        self._send(replicas=[replicas, TORCHELASTIC not in os.environ])

    def finish(self) -> None:
        """Waits until every rank has done its work, however long that takes.

        Does not return where one fails.
        """
        self.progress.enter(DONE)
        self._send(finished=True)
        self._done.wait()

    def _fail(self, error: BaseException) -> NoReturn:
        """Reports an error, and waits to be ended as the first rank's guard decides."""
        if isinstance(error, LVSAError):
            # What ranks find together is told without the number of one.
            alone = self.place.rank and not isinstance(error, SharedError | RankMismatch)
            self._report(Fault.REFUSED, f"rank {self.place.rank}: {error}" if alone else str(error))
        elif isinstance(error, SomeFailed):
            self._report(Fault.INCOMPLETE, str(error))
        else:
            os.write(2, "".join(traceback.format_exception(error)).encode())
            self._report(Fault.CUT if of_communication(error) else Fault.FAILED, summary(error))
        self._thread.join(PATIENCE)
        os._exit(FAILURE)

    def _file(self, what: str, path: Path) -> None:
        """A file that the guard removes when this process dies, or no longer."""
        self._send(**{what: str(path)})

    def _report(self, fault: Fault, text: str) -> None:
        self._beat()
        self._send(fault=fault, text=text)

    def _beat(self) -> None:
        self._send(beat={**self.progress.beat(), "waits": in_collective()})

    def _send(self, **message: Any) -> None:
        with self._sending:
            self._lines.send(**message)

    def _listen(self) -> None:
        """The thread: beats, signals and what the guard says."""
        while True:
            sources: list[Any] = [self._lines, self._signals]
            ready, _, _ = select.select(sources, [], [], BEAT)
            if self._signals in ready:
                self._signalled(os.read(self._signals, 1)[0])
            if self._lines in ready:
                messages = self._lines.receive()
                if messages is None:
                    if not self._done.is_set():
                        self._leave(FAILURE, "this rank's guard was killed")
                    return
                for message in messages:
                    self._obey(message)
            self._beat()

    def _obey(self, message: dict[str, Any]) -> None:
        if "port" in message:
            self._number = message["port"]
            self._port.set()
        elif "done" in message:
            self._done.set()
        elif "lost" in message:
            self.lost |= {message["lost"]}
        elif "end" in message:
            self._leave(message["end"], None)

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        # A parent's death is told thread by thread; its number changes with the last.
        time.sleep(0.1)
        orphan = "; what had started it was killed" if os.getppid() != self._parent else ""
        self._code = 128 + number
        self._report(Fault.SIGNAL, name + orphan)

    def _leave(self, code: int, why: str | None) -> NoReturn:
        """Ends this process, wherever its main thread is; the log tells where that was."""
        if why is not None:
            logger.error("%s", why)
        with suppress(OSError, ValueError):
            if code == FAILURE:
                faulthandler.dump_traceback(2)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code and (self._code or code))


@contextmanager
def watched(place: Place, log_dir: Path | None) -> Iterator[Watch]:
    """This process under guard. Errors of the block, and signals, end it with one message.

    Args:
        place: of this process.
        log_dir: folder for its log; without one a log is kept only of the rank that fails.

    Raises:
        LVSAError: where no log can be written.
    """
    log = open_log(log_dir, place.rank)
    with details_into(log, place.rank) as terminal:
        _end_with_torchrun()
        with Watch(place, log, log_dir is not None, terminal) as watch:
            yield watch


@contextmanager
def _signals_to(descriptor: int) -> Iterator[None]:
    """In the block, signals that would end this process write their number there instead."""
    usual = {number: signal.getsignal(number) for number in ENDING}
    # What is ignored, as by nohup, stays so.
    usual = {n: h for n, h in usual.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
    signal.set_wakeup_fd(descriptor)
    for number in usual:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in usual.items():
            signal.signal(number, handler)


def _end_with_torchrun() -> None:
    """Asks Linux for a SIGTERM when torchrun dies, which is then this process's parent.

    Other launchers end their processes by themselves; a shell that starts one and leaves is fine.
    """
    if sys.platform == "linux" and TORCHELASTIC in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def in_collective() -> bool:
    """Whether the main thread is inside a collective, as far as Python's frames show it."""
    frame = sys._current_frames().get(main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.endswith(COLLECTIVES)


def of_communication(error: BaseException | None) -> bool:
    """Whether an error comes from a collective or the store: most often another rank's fault."""
    while error is not None:
        if isinstance(error, CommunicationError):
            return True
        if isinstance(error, RuntimeError):
            # gloo's errors are plain RuntimeErrors that name its source files.
            words = f"{type(error).__name__} {error}".lower()
            if any(library in words for library in LIBRARIES) or "Dist" in type(error).__name__:
                return True
        error = error.__cause__
    return False


def summary(error: BaseException) -> str:
    """An error in one line, with the place that raised it."""
    words = str(error).strip().splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words[0]}{place}"
