"""ffmpeg as a child process whose every failure is an error with its cause.

The binary is the one that imageio-ffmpeg ships. Its own reader and writer are not used: they drop
the exit code, so that a full disk looks like success. PyAV would do as well, at the price of a
second copy of ffmpeg's libraries; a process of its own also cannot take the job down with it.
"""

import signal
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO

import imageio_ffmpeg

from lvsa.errors import LVSAError

# Lines of ffmpeg's log that an error repeats.
LAST_LINES = 6


class FFmpegError(LVSAError):
    """ffmpeg is missing, failed, or was killed; the message ends with its last words."""


class Child:
    """A running ffmpeg.

    Args:
        arguments: its command line, without the program.
        writing: whether it is fed by `pipe` (pipe:0); otherwise `pipe` is what it makes (pipe:1).
        loglevel: what it tells; see `said`.
    """

    def __init__(self, arguments: Sequence[str], *, writing: bool = False, loglevel: str) -> None:
        command = [executable(), "-hide_banner", "-nostats", "-loglevel", loglevel, *arguments]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if writing else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if writing else subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise FFmpegError(
                f"ffmpeg ({command[0]}) cannot be started: {error.strerror}"
            ) from error
        pipe = self.process.stdin if writing else self.process.stdout
        assert pipe is not None and self.process.stderr is not None
        self.pipe: IO[bytes] = pipe
        self._lines: deque[bytes] = deque(maxlen=200)
        # A log that nobody reads fills its pipe, and ffmpeg stops.
        self._listener = Thread(target=self._lines.extend, args=(self.process.stderr,), daemon=True)
        self._listener.start()

    def finish(self) -> int:
        """Waits for its end; its exit code, or minus the signal that killed it."""
        # Where it ended before it had read everything, its exit code tells why.
        with suppress(BrokenPipeError):
            self.pipe.close()
        code = self.process.wait()
        self._listener.join()
        return code

    def kill(self) -> None:
        """Ends it at once; nothing of it is left when this returns."""
        self.process.kill()
        self.finish()

    @property
    def said(self) -> list[str]:
        """Its log, the last lines of it, once it has ended."""
        return [line.decode(errors="replace").strip() for line in self._lines if line.strip()]

    def failure(self, code: int) -> str:
        """What a bad exit code means, in words."""
        if code < 0:
            reason = f"was killed by signal {-code} ({_signal_name(-code)})"
        else:
            reason = f"failed with exit code {code}"
        words = "\n".join(f"  {line}" for line in self.said[-LAST_LINES:])
        return f"ffmpeg {reason}{':' if words else ''}\n{words}".rstrip()


def executable() -> str:
    """The ffmpeg binary.

    Raises:
        FFmpegError: where there is none.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise FFmpegError(f"no ffmpeg: {error}") from error


@contextmanager
def running(
    arguments: Sequence[str], *, writing: bool = False, loglevel: str = "error"
) -> Iterator[Child]:
    """An ffmpeg that has ended when the block has, well or with an error.

    Whatever is raised in the block kills it.

    Args:
        arguments, writing, loglevel: as for `Child`.

    Raises:
        FFmpegError: where it cannot be started, is killed, or exits with an error.
    """
    child = Child(arguments, writing=writing, loglevel=loglevel)
    try:
        yield child
    except BrokenPipeError:
        # It went away while it was written to: its exit code tells why, checked below.
        pass
    except BaseException:
        child.kill()
        raise
    code = child.finish()
    if code:
        raise FFmpegError(child.failure(code))


def count_frames(path: Path) -> int:
    """Frames of a video file that can be decoded.

    Raises:
        FFmpegError: for a file that cannot be read to its end.
    """
    arguments = ["-xerror", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]
    with running([*arguments, "-progress", "pipe:1", "-f", "null", "-"]) as child:
        told = dict(line.split(b"=", 1) for line in child.pipe if b"=" in line)
    return int(told.get(b"frame", b"0"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
