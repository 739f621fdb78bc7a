"""One job at a time writes a name."""

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvsa.errors import LVSAError
from lvsa.launch.records import temporary

logger = logging.getLogger(__name__)


@contextmanager
def claimed(stem: Path) -> Iterator[None]:
    """The name of an output is this job's within the block.

    A hidden lock file says so, to other hosts that share the folder too. It means nothing once its
    process is gone, however that went.

    Raises:
        LVSAError: where another job that runs now writes this name; says which and where.
    """
    path = stem.with_name(f".{stem.name}.lock")
    descriptor = _locked(path, stem)
    temporary.tell("remove", path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        # While it is locked: whoever waits for the lock then sees that this is not the file.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        temporary.tell("keep", path)


def check_unclaimed(stem: Path) -> None:
    """Stops as `claimed` does, before any work."""
    with claimed(stem):
        pass


def _locked(path: Path, stem: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise LVSAError(
                f"{stem} is being written by another job ({owner}); wait for it, or give another "
                "--output-name"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: its file system has no locks (%s): another job that writes this name at the "
                "same time would not be noticed",
                stem.parent,
                error.strerror,
            )
        if temporary.same(descriptor, path):
            return descriptor
        os.close(descriptor)
