"""From denoised latents to the files of a video: nothing that was denoised is lost on the way.

The latents are on the disk before anything is decoded. Whatever happens then – memory that does
not suffice, a full disk, a power cut – costs the decoding, which can be done again from the file.
Frames are written as they are decoded: no video is held as a whole, where its VAE allows that.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lvsa.adapters.install.replication import share
from lvsa.errors import LVSAError
from lvsa.launch.checkpoint import file
from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.values import pack, unpack
from lvsa.launch.config import GenerateConfig
from lvsa.launch.job import Job, Model, open_model
from lvsa.launch.loading.weights import load_network
from lvsa.launch.media.encoder import check_encoder, written_video
from lvsa.launch.media.frames import decode, grows_with_video
from lvsa.launch.media.sharing import Helpers, helpers_in, sharing
from lvsa.launch.meter import Meter
from lvsa.launch.processes.progress import DONE, Progress
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.progress import progress
from lvsa.launch.records.claim import claimed
from lvsa.launch.records.output import LATENTS, OutputError, output_stem, with_suffix, write_record
from lvsa.launch.records.record import decoding_facts, finished, measured, meter_of
from lvsa.launch.requests.plan import Video
from lvsa.launch.requests.repeat import tell_repeated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Denoised:
    """What denoising came to.

    Args:
        record: of everything so far.
        latents: as a pipeline gives them to its VAE; None of one that decodes in its own way.
        frames: of such a pipeline, ``[1, F, H, W, 3]`` in 0 … 1.
    """

    record: dict[str, Any]
    latents: Tensor | None
    frames: Any = None


@dataclass(frozen=True)
class Files:
    """The files that a video comes to, and what is told of them on the way.

    Args:
        stem: path of the output, without suffix.
        config: what is asked for: a video, its latents, or both.
        meter: seconds and memory of the job so far, by parts.
        progress: told of the phases of the work.
        checkpoint: where latents wait until the rest is done; it is removed then.
        repeats: record of the video that this one is to be made as again.
    """

    stem: Path
    config: GenerateConfig
    meter: Meter
    progress: Progress
    checkpoint: CheckpointFolder | None = None
    repeats: Mapping[str, Any] | None = None

    def finish(self, pipe: Any, denoised: Denoised, helpers: Helpers | None = None) -> None:
        """Makes them of what was denoised.

        Args:
            pipe: with the VAE and the video processor of the model.
            helpers: ranks that all but this first one are in `help_decoding`; None where it
                decodes alone.

        Raises:
            LVSAError: where latents are asked for, and the pipeline shows none.
        """
        latents, checkpoint = denoised.latents, self.checkpoint
        wanted = self.config.wants_latents
        if wanted and latents is None:
            raise LVSAError(
                f"--output latents, --keep-latents: {type(pipe).__name__} decodes in its own way, "
                "and its latents cannot be had"
            )
        so_far = measured(denoised.record, self.meter)
        if latents is not None and checkpoint is not None and not checkpoint.decodes_only:
            keep(latents, so_far, checkpoint, needed=wanted)
        if self.config.output.output == "latents":
            # A video that is there keeps its record, which names its bits.
            if not with_suffix(self.stem, ".mp4").exists():
                write_record(with_suffix(self.stem, ".json"), so_far)
        else:
            self.write(pipe, denoised, helpers)
        if checkpoint is not None:
            tidy_up(checkpoint, self.stem, self.config)

    def decode(self, model: Model, denoised: Denoised, helpers: Helpers | None = None) -> None:
        """Makes them of latents that were kept, as `finish`; of the model its VAE is loaded."""
        pipe = decoder(model, self.config, denoised.latents)
        self.meter.lap("loading")
        self.finish(pipe, with_settings(denoised, self.config, self.stem), helpers)

    def write(self, pipe: Any, denoised: Denoised, helpers: Helpers | None = None) -> None:
        """Writes a video, as it is decoded, and its record."""

        def record_of(video: Path) -> dict[str, Any]:
            self.meter.lap("writing")
            whole = finished(denoised.record, self.meter, video, decoding_facts(helpers))
            if self.repeats is not None:
                tell_repeated(self.repeats, whole)
            return whole

        request = denoised.record["request"]
        path = with_suffix(self.stem, ".mp4")
        # Before anything that may fail here, while the others wait for it.
        share(denoised.latents, None if helpers is None else helpers.group)
        with written_video(path, request["fps"], record_of, request["num_frames"]) as video:
            if denoised.latents is None:
                for frame in denoised.frames[0]:
                    video.write(frame)
            else:
                self.progress.enter("decoding")
                # Frames that come one by one have a bar of their own.
                silent = grows_with_video(pipe.vae, getattr(pipe.vae, "use_tiling", False))
                aloud = progress("decoding", aloud=silent is not None)
                with aloud, sharing(pipe.vae, helpers):
                    decode(pipe, denoised.latents, video.write)
                self.meter.lap("decoding")
            self.progress.enter("writing")
        logger.info("wrote %s.mp4 and its record %s.json", self.stem, self.stem.name)


def help_decoding(pipe_for: Callable[[Tensor], Any], helpers: Helpers, runtime: Runtime) -> None:
    """Decodes this rank's part of a video for the first rank, which writes it.

    Args:
        pipe_for: what decodes these latents, as the first rank has it.
        helpers: the ranks that decode.
    """
    latents = share(None, helpers.group, runtime.device)
    if latents is None:
        return
    pipe = pipe_for(latents)
    runtime.progress.enter("decoding")
    with sharing(pipe.vae, helpers):
        decode(pipe, latents, lambda frame: None)
    runtime.progress.enter(DONE)


def keep(
    latents: Tensor, record: dict[str, Any], checkpoint: CheckpointFolder, needed: bool
) -> None:
    """Writes latents into a checkpoint.

    Raises:
        OutputError: where they cannot be written and are needed; else this is only said.
    """
    try:
        checkpoint.write_latents(pack({"latents": latents.cpu()}).copied(), record)
    except OutputError as error:
        if needed:
            raise
        logger.warning("the latents are not kept, and decoding goes on: %s", error)


def tidy_up(checkpoint: CheckpointFolder, stem: Path, config: GenerateConfig) -> None:
    """Takes away the checkpoint of what is done; latents that were asked for leave it before."""
    if config.wants_latents and checkpoint.decodes_only:
        target = with_suffix(stem, LATENTS)
        os.replace(checkpoint.latents, target)
        logger.info("wrote %s", target)
    checkpoint.remove()


def decode_kept(model: Model, job: Job, video: Video, runtime: Runtime) -> None:
    """Finishes a video whose denoising was done by a job that was interrupted after it.

    Args:
        job: the video's.
        runtime: this process among those that decode it, or watch the first one do so.
    """
    helpers = helpers_in(job, runtime.group)
    if not runtime.first:
        if helpers is not None:
            runtime.progress.enter("loading")
            help_decoding(partial(decoder, model, video.config), helpers, runtime)
        return
    runtime.progress.enter("loading")
    denoised = read_latents(video.checkpoint.latents, runtime.device)
    meter = meter_of(denoised.record, runtime.device)
    files = Files(
        video.stem, video.config, meter, runtime.progress, video.checkpoint, video.repeats
    )
    files.decode(model, denoised, helpers)


def decode_file(path: Path, config: GenerateConfig, runtime: Runtime) -> None:
    """Makes a video of a file of latents, for --decode.

    Raises:
        LVSAError: on several ranks, for a file that holds no latents, or where there is a video of
            that name and no --overwrite.
    """
    if runtime.world > 1:
        raise LVSAError(f"--decode runs on one process, and {runtime.world} were started")
    stem = output_stem(config.output.output_dir, config.output.output_name or "")
    video = with_suffix(stem, ".mp4")
    if video.exists() and not config.output.overwrite:
        raise LVSAError(
            f"{video} is there already; --overwrite replaces it, --output-name gives another name"
        )
    check_encoder()
    runtime.progress.enter("loading")
    denoised = read_latents(path, runtime.device)
    meter = meter_of(denoised.record, runtime.device)
    model = open_model(config)
    made_by = denoised.record["model"]["pipeline"]
    model = replace(model, source=replace(model.source, loaded_as=made_by))
    with claimed(stem):
        Files(stem, config, meter, runtime.progress).decode(model, denoised)


def with_settings(denoised: Denoised, config: GenerateConfig, stem: Path) -> Denoised:
    """Latents with what is asked for now of a video that they come to: how, and where."""
    record, fps = denoised.record, config.video.fps
    now = {
        "output_dir": str(stem.parent),
        "output_name": stem.name,
        "fps": fps,
        "vae_tiling": config.tuning.vae_tiling,
        "vae_parallel": config.processes.vae_parallel,
    }
    request = record["request"] if fps is None else {**record["request"], "fps": fps}
    record = {**record, "config": {**record["config"], **now}, "request": request}
    return replace(denoised, record=record)


def read_latents(path: Path, device: torch.device) -> Denoised:
    """Latents from a file, on a device.

    Raises:
        CheckpointError: for a file that is none of ours, or broken.
    """
    packed, facts = file.read(path)
    return Denoised(facts["record"], unpack(packed, device)["latents"].to(device))


def decoder(model: Model, config: GenerateConfig, latents: Tensor | None) -> Any:
    """What decodes latents: the model's VAE, in their dtype and on their device, and no more."""
    assert latents is not None, "read from a file that holds some"
    options = config.model
    vae = load_network(
        model.source, "vae", latents.dtype, options.variant, options.allow_pickle, latents.device
    )
    if model.adapter.tiled_vae or config.tuning.vae_tiling:
        vae.enable_tiling()
    return SimpleNamespace(vae=vae, video_processor=model.skeleton.video_processor)
