"""What a checkpoint is of: settings, model and versions, and what tells it from another."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lvsa.launch.job import Job
from lvsa.launch.records.output import versions

FORMAT = 1
"""Of our files; a checkpoint of another is one of another job."""
PACKAGES = ("lvsa", "torch", "diffusers")
"""Whose major versions must be the same: their state is what a checkpoint holds."""
SAMPLE = 1 << 20
"""Bytes at either end of a file of weights that stand for it: all of them take minutes to read."""
DIGITS = 16
# Beside the model, which is told by its weights, wherever they lie: what a job that did not fit
# into memory is started again with.
NO_MATTER = ("model", "vae_tiling", "offload", "shard_weights")


@dataclass(frozen=True)
class Identity:
    """A job, for comparing it with that of a checkpoint.

    Args:
        facts: what makes it this job, as JSON can hold it.
    """

    facts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digits that another job does not have."""
        text = json.dumps(self.facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def identity_of(
    job: Job, name: str, settings: Mapping[str, Any], loras: Iterable[Path] = ()
) -> Identity:
    """The identity of a job.

    Ranks and exchange are no part of it: they change a video by rounding alone.

    Args:
        job: the checked plan.
        name: of the output.
        settings: all that the video depends on, see `settings_of_job`.
        loras: files that are merged into the weights.
    """
    return Identity(
        {
            "format": FORMAT,
            "name": name,
            "settings": {n: value for n, value in settings.items() if n not in NO_MATTER},
            "pattern": job.pattern.digest,
            "pipeline": job.source.pipeline_class,
            "model": job.source.revision or sampled_digest(job.source.folder),
            "loras": [sampled_digest(file) for file in loras],
            # Another kind of device has state of its own.
            "device": job.device.type,
            "versions": {name: major(versions()[name]) for name in PACKAGES},
        }
    )


def major(version: str) -> str:
    """What must not change for state to keep its meaning: 2 of 2.13.0, but 0.42 of 0.42.1."""
    first, second, *_ = f"{version}.0".split(".")
    return first if first != "0" else f"{first}.{second}"


@cache
def sampled_digest(path: Path) -> str:
    """SHA-256 of a file, or of the files in a folder, by names, sizes and both ends.

    It takes an instant; weights that were trained on differ at their ends, too.
    """
    found = hashlib.sha256()
    inside = path.is_dir()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if inside else [path]:
        name = file.relative_to(path if inside else path.parent)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        found.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as opened:
            found.update(opened.read(SAMPLE))
            opened.seek(max(0, size - SAMPLE))
            found.update(opened.read(SAMPLE))
    return found.hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two jobs' facts, in words: steps 20 (now 30)."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new)
        elif old != new:
            long = key in ("pattern", "model")
            found.append(f"the {key}" if long else f"{key} {old!r} (now {new!r})")
    return found
