"""How the processes of a job speak, and how they end: one message, and an exit code."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lvsa.errors import LVSAError, RankMismatch
from lvsa.launch.processes.environment import Place, leave_for_torchrun, place_of, rank_of

logger = logging.getLogger(__name__)

FAILURE, USER_ERROR = 1, 2
# Seconds that other ranks wait for the first to speak and to end, which may have started later.
PATIENCE = 30.0


class SharedError(LVSAError):
    """A user's mistake that every rank raises alike, so that one of them can report it."""


class SomeFailed(Exception):
    """Some of several videos failed, each with a message of its own, and every rank knows it."""


def set_up_logging(rank: int) -> None:
    """The first rank tells what happens; the others only what goes wrong, with their number."""
    first = rank == 0
    form = "%(levelname)s: %(message)s" if first else f"[rank {rank}] %(levelname)s: %(message)s"
    for stream in (sys.stdout, sys.stderr):
        # Where the locale's encoding lacks a letter of a message or prompt, UTF-8 is still right.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format=form, stream=sys.stderr, force=True)
    logging.getLogger("lvsa").setLevel(logging.INFO)
    if not first:
        # A setting without effect is said once, not once per rank; log files have all of it.
        logging.root.handlers[0].addFilter(_others_speak)


@contextmanager
def at_level(name: str, level: int) -> Iterator[None]:
    """Only what is of this level or above is logged by a logger while the context lasts."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def speak_for_replica(number: int) -> None:
    """This rank tells what happens from now on, as the first one of a replica: with its number."""
    for handler in logging.root.handlers:
        if _others_speak in handler.filters:
            handler.removeFilter(_others_speak)
            handler.setFormatter(
                logging.Formatter(f"[replica {number}] %(levelname)s: %(message)s")
            )


def _others_speak(record: logging.LogRecord) -> bool:
    ours = record.name == "lvsa" or record.name.startswith("lvsa.")
    return not ours or record.levelno >= logging.ERROR


def run_reporting(work: Callable[[Place], object]) -> int:
    """The exit code of ``work``, which is told its place among the processes.

    A user's mistake, and the failure of some of several videos, become a message, once; any other
    error keeps its traceback.
    """
    rank = rank_of(os.environ)
    set_up_logging(rank)
    try:
        place = place_of(os.environ)
    except LVSAError as error:
        # Each process has been told something else.
        logger.error("%s", error)
        return USER_ERROR
    try:
        work(place)
    except LVSAError as error:
        _report(error, place)
        return USER_ERROR
    except SomeFailed as error:
        _report(error, place)
        return FAILURE
    except Exception:
        logger.error("rank %d of %d failed", place.rank, place.world)
        raise
    return 0


def _report(error: Exception, place: Place) -> None:
    """Says what was wrong, on the first rank; another one only if it is left alone."""
    if place.first:
        logger.error("%s", error)
        leave_for_torchrun(str(error))
        return
    # As soon as one process ends with an error, torchrun and mpirun end the others, in the middle
    # of a word or before it. So these wait to be ended, and have nothing to add to the first's.
    signal.signal(signal.SIGTERM, _end_in_peace)
    time.sleep(PATIENCE)
    if not isinstance(error, SharedError | RankMismatch | SomeFailed):
        logger.error("rank %d: %s", place.rank, error)


def _end_in_peace(*_: object) -> NoReturn:
    os._exit(0)
