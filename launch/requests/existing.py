"""Videos that are there already: the one that is asked for, or one that must not be replaced."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvsa.errors import LVSAError
from lvsa.launch.checkpoint.header import read_facts
from lvsa.launch.config import GenerateConfig
from lvsa.launch.fields import flattened
from lvsa.launch.inputs import FILES
from lvsa.launch.job import Job
from lvsa.launch.records.output import LATENTS, with_suffix
from lvsa.launch.records.provenance import digest, folder_digests, input_digests
from lvsa.launch.records.record import settled

logger = logging.getLogger(__name__)

# Groups of settings that say where a video is made and kept, not what it shows.
ELSEWHERE = ("listing", "output", "checkpoint", "processes")
MOST_SHOWN = 6
"""Settings that a message names."""


class ExistingVideo(LVSAError):
    """A video of other settings has the name of one that is asked for."""


class Existing:
    """The videos that a job finds, held against what it is asked for."""

    def __init__(self) -> None:
        self._weights: dict[Path, dict[str, str]] = {}

    def holds(self, job: Job, stem: Path, settings: Mapping[str, Any] | None = None) -> bool:
        """Whether what a job makes is there: its record names the same settings and model.

        That is the video, or its latents where the job stops at them.

        Args:
            stem: path of the output, without suffix.
            settings: those of the job, where they are known: its files are read for them.

        Raises:
            ExistingVideo: where there is another video, or latents that would be replaced; names
                what differs.
        """
        video, latents = (with_suffix(stem, suffix) for suffix in (".mp4", LATENTS))
        records = {video: _record_of}
        if job.config.wants_latents:
            records[latents] = _record_of_latents
        there = {path: record_of(path) for path, record_of in records.items() if path.exists()}
        if not there:
            return False
        now = settings or settings_of_job(job)
        for path, record in there.items():
            self._check_same(job, path, record, now)
        if job.config.output.output == "latents":
            return latents in there
        if video in there and job.config.wants_latents and latents not in there:
            logger.warning(
                "%s is there already, without its latents; --overwrite makes both anew", video
            )
        return video in there

    def _check_same(
        self, job: Job, path: Path, record: Mapping[str, Any] | None, now: Mapping[str, Any]
    ) -> None:
        """Stops for a file of other settings or weights than those of a job."""
        if record is None:
            differ = ["no record of it beside it"]
        else:
            then = _settings_of_record(record)
            differ = [
                f"{name} {then.get(name)!r} (now {now.get(name)!r})"
                for name in sorted(now.keys() | then.keys())
                if now.get(name) != then.get(name)
            ]
            if self._other_weights(job, record, path):
                differ.append("other weights")
        if not differ:
            return
        more = [f"{len(differ) - MOST_SHOWN} more"] if len(differ) > MOST_SHOWN else []
        raise ExistingVideo(
            f"{path} is there already, made with other settings: "
            f"{', '.join(differ[:MOST_SHOWN] + more)}. Give --overwrite to replace it, or another "
            "--output-name or --output-dir"
        )

    def _other_weights(self, job: Job, record: Mapping[str, Any], path: Path) -> bool:
        """Whether a model on the disk changed since; read whole only where a file is newer."""
        if job.source.on_hub:
            return False
        folder = job.source.folder
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        # The time of the last change, which copying cannot set back.
        if all(file.st_ctime < path.stat().st_ctime for file in files):
            return False
        if folder not in self._weights:
            self._weights[folder] = folder_digests(folder)
        return self._weights[folder] != record.get("weights", {}).get("sha256")


def _record_of(path: Path) -> dict[str, Any] | None:
    """The record of a video; None where there is none, or that of another file."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        known = record["video"]["sha256"] == digest(path) and _settings_of_record(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if known else None


def _record_of_latents(path: Path) -> dict[str, Any] | None:
    """The record in a file of latents; None of a file that is none of ours."""
    try:
        record: dict[str, Any] = read_facts(path)["record"]
        known = _settings_of_record(record)
    except (LVSAError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if known else None


def settings_of_job(job: Job) -> dict[str, Any]:
    """All settings that a job's video depends on, as they were settled; of files their digests."""
    files = {name: _sha256(entry) for name, entry in input_digests(job.config.video).items()}
    dtype = str(job.dtype).removeprefix("torch.")
    config = {**_settings(job.config), "revision": job.source.revision, "dtype": dtype}
    return {**config, **settled(job.request), **files}


def _settings_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a record tells them; one that came later has its default."""
    files = {name: _sha256(entry) for name, entry in record["inputs"].items()}
    config = _settings(GenerateConfig.from_dict(record["config"]))
    return {**config, "dtype": record["model"]["dtype"], **record["request"], **files}


def _settings(config: GenerateConfig) -> dict[str, Any]:
    """All settings that a video depends on; of files their names only whether there is one."""
    outside = {field.name for group in ELSEWHERE for field in flattened(getattr(config, group))}
    return {
        name: value
        for name, value in config.as_dict().items()
        if name not in outside and name not in (*FILES, "negative_prompt_file")
    }


def _sha256(entry: Mapping[str, Any]) -> Any:
    return entry.get("sha256")
