"""What a video depends on besides its settings: code, weights, input files, machines."""

import hashlib
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from lvsa.launch.config import VideoConfig
from lvsa.launch.inputs import FILES
from lvsa.launch.loading.lora import FoundLoRA
from lvsa.launch.loading.models import ModelSource

Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parents[2]


class Later(Generic[Result]):
    """Work that goes on beside other work, and is waited for when its result is needed.

    Its thread does not keep a process alive that fails meanwhile.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._future: Future[Result] = Future()

        def run() -> None:
            try:
                self._future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                self._future.set_exception(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether it is over."""
        return self._future.done()

    def result(self) -> Result:
        """What the work returned; raises what it raised."""
        # A thread that still frees its tensors when the interpreter ends would abort the process.
        self._thread.join()
        return self._future.result()


def provenance(source: ModelSource, loras: Sequence[FoundLoRA] = ()) -> dict[str, Any]:
    """Code, weights and LoRAs of a job, each by a number that no other has.

    Reads all weights once: a minute for the largest models.
    """
    return {
        "code": code_version(),
        "weights": {"revision": source.revision}
        if source.on_hub
        else _if_readable(lambda: {"sha256": folder_digests(source.folder)}),
        "loras": {lora.source: _if_readable(partial(_file, file)) for lora, file in loras},
    }


def input_digests(video: VideoConfig) -> dict[str, Any]:
    """The files that a video starts from, by their SHA-256."""
    given = {name: path for name in FILES if (path := getattr(video, name)) is not None}
    return {name: _if_readable(partial(_file, path)) for name, path in given.items()}


def _if_readable(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was read; a file that is gone by now is said in the record, and costs no video."""
    try:
        return read()
    except OSError as error:
        return {"error": str(error)}


def code_version() -> dict[str, Any] | None:
    """Commit of the checkout that runs, and whether its files differ from it; None for a package
    that is no checkout, or without git."""
    if not (ROOT / ".git").exists():
        return None
    commit, changes = (
        _git(*command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    return None if commit is None else {"commit": commit, "modified": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _file(path: Path) -> dict[str, Any]:
    return {"sha256": digest(path)}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file and folder in a model's folder; hidden ones do not count.

    That of a folder is the SHA-256 of its files' names and digests, as `sha256sum` prints them in
    the order of their names.
    """
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            found[entry.name] = digest(entry)
            continue
        files = sorted(path for path in entry.rglob("*") if path.is_file())
        lines = [f"{digest(path)}  {path.relative_to(entry).as_posix()}\n" for path in files]
        found[entry.name] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the device of this process."""
    facts: dict[str, Any] = {
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    module: Any = torch.get_device_module(device)
    if hasattr(module, "get_device_properties") and device.type != "cpu":
        properties = module.get_device_properties(device)
        facts |= {"device": properties.name, "device_memory_bytes": properties.total_memory}
    return facts


def _cpu() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
