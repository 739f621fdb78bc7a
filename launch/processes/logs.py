"""The terminal is for messages, the log file of a rank for the details.

Libraries write stack frames and warnings straight to file descriptor 2, a page at a time. That goes
into the log, with tracebacks and all that is logged; Python's own `sys.stderr`, to which the
progress bar and messages go, stays the terminal.
"""

import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvsa.errors import LVSAError

FORM = "%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"


def open_log(folder: Path | None, rank: int) -> Path:
    """The log file of a rank: in ``folder``, or without one among the system's temporary files.

    Raises:
        LVSAError: where no file can be made there.
    """
    if folder is None:
        descriptor, name = tempfile.mkstemp(prefix=f"lvsa-rank-{rank}-", suffix=".log")
        os.close(descriptor)
        return Path(name)
    path = folder.absolute() / f"rank-{rank}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise LVSAError(f"--log-dir {folder}: {path} cannot be written: {error.strerror}") from None
    return path


@contextmanager
def details_into(log: Path, rank: int) -> Iterator[int]:
    """In the block, file descriptor 2 and all that is logged go into ``log``.

    Yields:
        descriptor of what was file descriptor 2: the terminal.
    """
    sys.stderr.flush()
    terminal, usual = os.dup(2), sys.stderr
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 2)
    os.close(target)
    with (
        open(terminal, "w", encoding="utf-8", errors="backslashreplace", buffering=1,
             closefd=False) as screen,
        open(2, "a", encoding="utf-8", errors="backslashreplace", buffering=1,
             closefd=False) as file,
    ):  # fmt: skip
        handlers = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler)]
        messages = [handler for handler in handlers if handler.stream is usual]
        details = logging.StreamHandler(file)
        details.setFormatter(logging.Formatter(FORM.format(rank=rank)))
        logging.root.addHandler(details)
        sys.stderr = screen
        for handler in messages:
            handler.setStream(screen)
        faulthandler.enable(file)
        try:
            yield terminal
        finally:
            faulthandler.disable()
            logging.root.removeHandler(details)
            sys.stderr = usual
            for handler in messages:
                handler.setStream(usual)
            screen.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
