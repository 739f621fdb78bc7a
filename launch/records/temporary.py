"""Files that are there only while somebody holds them: parts of a file to come, and locks.

Each is locked (flock) by the process that made it, so whoever finds one can tell whether it was
left behind by a process that is gone. A guard that outlives its process removes them at once.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = re.compile(r"\.[0-9a-f]{16}\.part(\.\w+)?")

listeners: list[Callable[[str, Path], None]] = []
"""Told ``remove`` and a path before a file is made, and ``keep`` when it need not be removed."""


def part_of(path: Path) -> Path:
    """A hidden name beside ``path``, with its suffix, that nobody can foresee."""
    return path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A new empty file that is locked in the block; at its end it is removed if it is still there.

    No file that exists is opened and no link followed. Permissions are those of the umask.

    Raises:
        OSError: where the operating system refuses.
    """
    tell("remove", path)
    try:
        descriptor = _made(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        tell("keep", path)


def _made(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        # Not every file system has locks; on one without them nothing is ever taken for abandoned.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if same(descriptor, path):
            return descriptor
        # Somebody tidied up between the two calls.
        os.close(descriptor)


def remove_abandoned(path: Path) -> None:
    """Removes a file that no process holds; leaves any other, and what cannot be locked."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing there."""
    for path in folder.glob(".*.part*"):
        if PART.fullmatch(path.name):
            remove_abandoned(path)


def same(descriptor: int, path: Path) -> bool:
    """Whether a path leads to this open file, and not to another one by now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def tell(what: str, path: Path) -> None:
    """Tells all listeners of a file."""
    for listener in listeners:
        listener(what, path.absolute())
