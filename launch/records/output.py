"""Files that are written whole or not at all, and the names of those that a job writes."""

import json
import os
import platform
import re
import secrets
import signal
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import lvsa
from lvsa.errors import LVSAError
from lvsa.launch.records.temporary import held, part_of, remove_abandoned_parts

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "imageio-ffmpeg")
OPTIONAL = "distvae"
"""A package that decodes where it is installed."""
# What a job writes, side by side under one name.
LATENTS = ".latents.safetensors"
SUFFIXES = (".mp4", ".json", ".mask.png", LATENTS)
LONGEST = max(map(len, SUFFIXES))
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class OutputError(LVSAError):
    """A file that cannot be written; what was there before is untouched."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that takes its place when all went well, else vanishes.

    It is empty at first, has the suffix of ``path``, a name that nobody can foresee, and the
    permissions that the umask gives. It is on the disk before it replaces anything. A link at
    ``path`` is itself replaced; what it points to stays as it is. Signals that end the program end
    the block like an exception.

    Raises:
        OutputError: where the operating system refuses; names the path and the cause.
    """
    with written_together(path) as parts:
        yield parts[0]


@contextmanager
def written_together(*paths: Path) -> Iterator[list[Path]]:
    """New files that take the places of ``paths``, of one folder, when all of them are complete.

    Each as `written_whole` says. Where a process is killed in the moment of the exchange, no old
    file lies beside a new one, and the last file is only there where all are.

    Raises:
        OutputError: where the operating system refuses; names the path and the cause.
    """
    parts, path = [part_of(path) for path in paths], paths[-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with signals_raise(), ExitStack() as stack:
            for part in parts:
                stack.enter_context(held(part))
            yield parts
            for part in parts:
                _flush(part)
            if len(paths) > 1:
                path.unlink(missing_ok=True)
            for part, target in zip(parts, paths, strict=True):
                os.replace(part, target)
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}") from error
    # The files are in place; not every file system can flush a folder.
    with suppress(OSError):
        _flush(path.parent)


def _flush(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Signals that end a program as exceptions, so that clean-up runs; a second one is ignored.

    Those that somebody handles otherwise stay theirs.
    """

    def leave(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    usual = {}
    if threading.current_thread() is threading.main_thread():
        usual = {number: signal.getsignal(number) for number in ENDING}
    ours = [n for n, h in usual.items() if h in (signal.SIG_DFL, signal.default_int_handler)]
    try:
        for number in ours:
            signal.signal(number, leave)
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def with_suffix(stem: Path, suffix: str) -> Path:
    """A file of a job, by the path that all of them have without their suffixes."""
    return stem.with_name(f"{stem.name}{suffix}")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """A JSON file beside the video."""
    with written_whole(path) as temporary:
        temporary.write_text(as_text(record), encoding="utf-8")


def as_text(record: dict[str, Any]) -> str:
    """A record as JSON, indented."""
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


@cache
def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    found = {"python": platform.python_version(), "lvsa": lvsa.__version__}
    found.update({name: version(name) for name in PACKAGES})
    with suppress(PackageNotFoundError):
        found[OPTIONAL] = version(OPTIONAL)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def output_stem(folder: Path, given: str) -> Path:
    """Path of the output without suffix, checked for every file that the job will write.

    Args:
        folder: of the output.
        given: the name, with or without the suffix of a video.

    Raises:
        LVSAError: for a name that is no file name, is too long, or is a folder's; and for an
            output folder in which no file can be made.
    """
    name = re.sub(r"\.mp4$", "", given, flags=re.IGNORECASE)
    _check_name(name, given)
    if "\0" in str(folder):
        raise LVSAError(f"--output-dir is {str(folder)!r}; no path holds a NUL character")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_length(name, os.pathconf(folder, "PC_NAME_MAX"))
        for suffix in SUFFIXES:
            _check_replaceable(folder / f"{name}{suffix}")
        # A trial as long as the longest name to come, which may be too long for the whole path.
        trial = folder / f"{name}.{secrets.token_hex(LONGEST)[: LONGEST - 1]}"
        with held(trial):
            remove_abandoned_parts(folder)
    except OSError as error:
        raise LVSAError(
            f"--output-dir {folder}: no file can be made there: {error.strerror}"
        ) from error
    return folder / name


def _check_name(name: str, given: str) -> None:
    """Refuses what is no plain file name, with the nearest one that is.

    Args:
        name: without the suffix of a video.
        given: as the user wrote it.
    """
    unwritable = [c for c in name if c in "/\\" or unicodedata.category(c) in ("Cc", "Cs")]
    if unwritable or name != name.strip() or not name.strip("."):
        nearest = "".join("-" if c in unwritable else c for c in name).strip(" .-") or "video"
        raise LVSAError(
            f"--output-name is {given!r}; it must be a file name: no folders (--output-dir), no "
            f"control characters, no space at its ends, not only dots. Nearest: {nearest!r}"
        )


def _check_length(name: str, limit: int) -> None:
    """Refuses a name that is too long with a suffix, in bytes, as file systems count."""
    encoded, room = os.fsencode(name), limit - LONGEST
    if len(encoded) > room:
        nearest = encoded[:room].decode(errors="ignore")
        raise LVSAError(
            f"--output-name has {len(encoded)} bytes; with its suffixes at most {room} are "
            f"allowed there. Nearest: {nearest!r}"
        )


def _check_replaceable(path: Path) -> None:
    """Refuses what a file cannot, or should not, take the place of."""
    if path.is_dir():
        raise LVSAError(f"{path} is a folder, which no file replaces; give another --output-name")
    if path.exists() and not path.is_file():
        raise LVSAError(
            f"{path} exists and is no ordinary file; remove it or give another --output-name"
        )
