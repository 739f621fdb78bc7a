"""Every request of a job, checked before any weights are loaded."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lvsa.errors import LVSAError
from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.identity import identity_of
from lvsa.launch.config import GenerateConfig
from lvsa.launch.job import Job, Model, make_job
from lvsa.launch.processes.reporting import at_level
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.output import LATENTS, output_stem, with_suffix
from lvsa.launch.records.provenance import input_digests
from lvsa.launch.requests.existing import Existing, settings_of_job
from lvsa.launch.requests.lists import ListError, Request
from lvsa.launch.requests.names import named
from lvsa.launch.requests.repeat import check_repeat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Video:
    """A request that can be made.

    Args:
        number, of: of the request in its list, from 1, and how many there are.
        config: its settings.
        stem: path of the output, without suffix.
        done: whether it was made before, and stays.
        checkpoint: where the job keeps what it has of the video, until it is there.
        denoised: whether all but decoding was done before.
        repeats: record of the video that it is to be made as again.
    """

    number: int
    of: int
    config: GenerateConfig
    stem: Path
    done: bool
    checkpoint: CheckpointFolder
    denoised: bool
    repeats: Mapping[str, Any] | None = None

    @property
    def last(self) -> bool:
        """Whether it is sure that no other video comes after it; a replica may yet have to make
        what another one leaves behind."""
        return self.number == self.of and self.config.processes.replicas == 1

    @property
    def file(self) -> Path:
        """What is made: the video, or its latents where the job stops at them."""
        only_latents = self.config.output.output == "latents"
        return with_suffix(self.stem, LATENTS if only_latents else ".mp4")

    @property
    def turn(self) -> str:
        """Which of how many videos this is, for messages."""
        return f"{self.number} of {self.of}"


def agreed(requests: Sequence[Request]) -> dict[str, Any]:
    """What all ranks must have been asked for: the settings of the first request, and a digest of
    the others, which may be thousands."""
    rest = json.dumps([request.config.as_dict() for request in requests[1:]], sort_keys=True)
    digest = hashlib.sha256(rest.encode()).hexdigest()
    return {**requests[0].config.as_dict(), "requests": f"{len(requests)}, {digest}"}


def plan_videos(
    requests: Sequence[Request], model: Model, world: int, device: torch.device
) -> list[Video]:
    """Checks every request, reads its images and videos, and looks for what is there already.

    Raises:
        LVSAError: for requests that cannot work, all in one message; see `make_job`.
    """
    problems: dict[str, str] = {}
    videos, existing = [], Existing()
    for number, request in enumerate(named(requests), 1):
        config = request.config
        try:
            # What is told of a request is left to the time when it is made; errors are raised.
            with at_level("lvsa", logging.ERROR):
                job = make_job(config, world, device, model=model)
            stem = output_stem(config.output.output_dir, config.output.output_name or "")
            if request.repeats is not None:
                check_repeat(request.repeats, input_digests(config.video), job.world)
            settings = settings_of_job(job)
            done = not config.output.overwrite and _there(existing, job, stem, settings)
            loras = [lora.file for lora in model.loras]
            identity = identity_of(job, stem.name, settings, loras)
            checkpoint = CheckpointFolder(stem.parent, identity)
            denoised = checkpoint.decodes_only and not config.checkpoint.fresh
            videos.append(
                Video(
                    number, len(requests), config, stem, done, checkpoint, denoised, request.repeats
                )
            )
        except LVSAError as error:
            if not request.where:
                raise
            problems[request.where] = str(error)
    if problems:
        raise ListError.of(problems)
    return videos


def _there(existing: Existing, job: Job, stem: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return existing.holds(job, stem, settings)
    except LVSAError as error:
        # A plan replaces nothing.
        if not job.config.output.dry_run:
            raise
        logger.warning("%s", error)
        return False


def as_left(video: Video, job: Job) -> Video:
    """A request as another replica left it behind: perhaps a whole video, or its latents."""
    config = video.config
    done = not config.output.overwrite and Existing().holds(job, video.stem)
    denoised = video.checkpoint.decodes_only and not config.checkpoint.fresh
    return replace(video, done=done, denoised=denoised)


def job_of(config: GenerateConfig, model: Model, runtime: Runtime) -> Job:
    """The plan of one request on every rank; the first reads its images and videos for all.

    Raises:
        LVSAError: on every rank, where one of them finds a fault.
    """

    world, device = runtime.all_ranks, runtime.device
    # Images and videos may be large, and only on the first rank's node.
    first = runtime.on_first(lambda: make_job(config, world, device, model=model))
    request = runtime.from_first(None if first is None else first.request)
    return runtime.together(lambda: first or make_job(config, world, device, request, model))
