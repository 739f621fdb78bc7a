"""Long videos from prompts, on one process or many.

    torchrun --nproc_per_node=8 launch/generate.py --model DIR --prompt TEXT --num-frames 321 --lvsa

The way data flows: arguments → frozen config → requests → processes → the model's configs → frame
grid, pattern and shards of every request → weights; then for each video LVSA and plan on the
pipeline → denoising → decoding → mp4 and record.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lvsa.launch.arguments import parse
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.reporting import SomeFailed, run_reporting
from lvsa.launch.processes.watch import watched
from lvsa.launch.requests.lists import Request, is_list, requests_of
from lvsa.launch.requests.share import share_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lvsa.launch.job import Job, Model
    from lvsa.launch.meshes.choice import Choice
    from lvsa.launch.meter import Meter
    from lvsa.launch.processes.runtime import Runtime
    from lvsa.launch.records.provenance import Later
    from lvsa.launch.requests.plan import Video
    from lvsa.launch.tuning.residence import Residence

# torch, diffusers and transformers come with most of what functions import here: seconds, for
# arguments that hold.
logger = logging.getLogger("lvsa.launch.generate")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the launcher and exits with its code: 0, 2 for a user's mistake, 1 for a failure."""

    def work(place: Place) -> None:
        config = parse(argv, quiet=not place.first)
        requests = share_of(requests_of(config), config.listing.share)
        if not requests:
            logger.info("--share %s of this list is empty", config.listing.share)
            return
        with watched(place, config.processes.log_dir) as watch:
            from lvsa.launch.processes.runtime import start

            with start(config.processes, place, watch) as runtime:
                run(requests, runtime)

    sys.exit(run_reporting(work))


@dataclass(frozen=True)
class Loaded:
    """A model with its weights, ready for any number of videos.

    Args:
        pipe: the pipeline, on this rank's device.
        mesh: the job's ranks; None for one process.
        residence: which of its networks are on the device.
        origins: code and weights, for the records; on the first rank of a replica.
        meter: what loading took.
        parallel: why the ranks share a video as they do, where that was chosen.
    """

    pipe: Any
    mesh: "DeviceMesh | None"
    residence: "Residence"
    origins: "Later[dict[str, Any]] | None"
    meter: "Meter"
    parallel: str | None = None


def run(requests: Sequence[Request], runtime: "Runtime") -> None:
    """Makes every video that is not there yet, or tells the plans of all for --dry-run.

    Raises:
        SomeFailed: at the end, where some of several videos failed.
    """
    from lvsa.comm import check_agreement
    from lvsa.launch.checkpoint.folder import look
    from lvsa.launch.finish import decode_file, decode_kept, tidy_up
    from lvsa.launch.job import open_model
    from lvsa.launch.media.encoder import check_encoder
    from lvsa.launch.meshes.choice import choose
    from lvsa.launch.records.claim import check_unclaimed, claimed
    from lvsa.launch.records.output import versions
    from lvsa.launch.report import tell
    from lvsa.launch.requests.page import Page
    from lvsa.launch.requests.plan import agreed, as_left, job_of, plan_videos
    from lvsa.launch.requests.turns import check_replicas, make_all

    config = requests[0].config
    check_agreement(agreed(requests), runtime.group)
    check_agreement(versions(), runtime.group, what="versions of packages")
    if config.checkpoint.decode is not None:
        decode_file(config.checkpoint.decode, config, runtime)
        return
    runtime.progress.enter("planning")
    model = runtime.together(lambda: open_model(config))
    choice = choose(requests, model, runtime)
    if choice is not None:
        requests = [choice.on(request) for request in requests]
    videos = runtime.from_first(
        runtime.on_first(lambda: plan_videos(requests, model, runtime.world, runtime.device))
    )
    assert videos is not None
    said: set[str] = set()
    if config.output.dry_run:
        for video in videos:
            planned = job_of(video.config, model, runtime)
            tell(planned, video.stem, said, runtime.first, is_list(requests))
        return
    page = Page(videos)
    to_make = [video for video in videos if not video.done]
    for video in videos:
        if video.done:
            logger.info("%s: %s is there already", video.turn, video.file)
            runtime.on_first(partial(tidy_up, video.checkpoint, video.stem, video.config))
    if is_list(requests) and runtime.first:
        page.write()
    if not to_make:
        return

    runtime.on_first(lambda: check_unclaimed(to_make[0].stem))
    job = job_of(to_make[0].config, model, runtime)
    mesh = job.mesh.device_mesh(runtime.device.type)
    team = runtime.of_replica(job.mesh, mesh)
    runtime.together(lambda: check_encoder() if team.first else None)
    check_replicas(to_make[0].stem.parent, len(to_make), runtime, team)
    tell(job, to_make[0].stem, said, runtime.first)
    said = runtime.from_first(said)
    denoise = not all(video.denoised for video in to_make)
    loaded = load(job, model, mesh, choice, runtime, team) if denoise else None

    def make(video: "Video", left_behind: bool = False) -> None:
        of_video = job
        if video is not to_make[0]:
            of_video = job_of(video.config, model, team)
            tell(of_video, video.stem, said, team.first)
        with team.holding(lambda: claimed(video.stem)):
            if left_behind:
                video = team.from_first(team.on_first(partial(as_left, video, of_video)) or video)
            if video.done:
                team.on_first(partial(tidy_up, video.checkpoint, video.stem, video.config))
                return
            team.on_first(partial(look, video.checkpoint, video.config.checkpoint.fresh))
            if loaded is not None and not video.denoised:
                make_video(loaded, of_video, video, team)
            else:
                decode_kept(model, of_video, video, team)

    if not is_list(requests):
        make(to_make[0])
        return
    failed = make_all(to_make, make, page, runtime, team)
    if failed:
        raise SomeFailed(f"{len(failed)} of {len(videos)} videos failed: {', '.join(failed)}")


def load(
    job: "Job",
    model: "Model",
    mesh: "DeviceMesh | None",
    choice: "Choice | None",
    runtime: "Runtime",
    team: "Runtime",
) -> Loaded:
    """The model's weights on every rank's device, with what is done to them before LVSA comes.

    Args:
        mesh: the job's ranks.
        choice: of that mesh, where it was left open.
        runtime: this process among those of the job, all of which load.
        team: this process among those of its replica, whose first one encodes.
    """
    from lvsa.launch.loading.sharded import load_sharded
    from lvsa.launch.loading.weights import load_pipeline
    from lvsa.launch.meter import Meter
    from lvsa.launch.progress import progress
    from lvsa.launch.records.provenance import Later, provenance
    from lvsa.launch.tuning.prepare import loads_to, prepare
    from lvsa.launch.tuning.residence import Residence

    meter, options, tuning = Meter(runtime.device), job.config.model, job.config.tuning
    runtime.progress.enter("loading")
    with progress("loading the weights", runtime.shown):
        if tuning.shard_weights and team.world > 1:
            pipe = load_sharded(job, model, runtime, team)
        else:
            pipe = runtime.together(
                lambda: load_pipeline(
                    job.source,
                    job.dtype,
                    job.adapter,
                    encodes=team.first,
                    variant=options.variant,
                    allow_pickle=options.allow_pickle,
                    device=loads_to(tuning, model.loras, runtime.device),
                )
            )
            networks = job.adapter.transformers(pipe)
            runtime.together(lambda: prepare(pipe, tuning, model.loras, networks, runtime.device))
    pipe.set_progress_bar_config(disable=not team.shown, desc="denoising", unit="step")
    origins = Later(lambda: provenance(job.source, model.loras)) if team.first else None
    residence = Residence(pipe, runtime.device, offloaded=tuning.offload != "none")
    parallel = None if choice is None else choice.reason
    meter.lap("loading")
    return Loaded(pipe, mesh, residence, origins, meter, parallel)


def make_video(loaded: Loaded, job: "Job", video: "Video", runtime: "Runtime") -> Any:
    """One video with its record, on the disk.

    Args:
        runtime: this process among those that make it.

    Returns:
        What the pipeline's call did: latents, but on the first rank, which decodes them later.
    """
    from lvsa.adapters.install.enable import enable
    from lvsa.launch.checkpoint.decoding import without_decoding
    from lvsa.launch.checkpoint.going_on import going_on
    from lvsa.launch.finish import Denoised, Files, help_decoding
    from lvsa.launch.inputs import call_arguments
    from lvsa.launch.loading.weights import ENCODERS
    from lvsa.launch.media.sharing import helpers_in
    from lvsa.launch.meter import Meter, StepTimer
    from lvsa.launch.profiling import StepProfile
    from lvsa.launch.progress import progress, showing_phases
    from lvsa.launch.prompts import telling_truncation
    from lvsa.launch.records.record import make_record, rank_facts
    from lvsa.launch.tuning.residence import before_denoising

    steps = StepTimer(runtime.device)
    config, pipe, residence, last = job.config, loaded.pipe, loaded.residence, video.last
    residence.come_back()
    transformers = job.adapter.transformers(pipe)
    meter = Meter(runtime.device, loaded.meter.seconds, loaded.meter.peaks)

    def encoded() -> None:
        residence.leave(ENCODERS, for_good=last)
        meter.lap("encoding")

    job.request.sampling.set_on(pipe)
    # The first rank decodes; the others are done when the last step is.
    arguments = call_arguments(job.request, job.adapter, pipe, runtime.first)
    lvsa = partial(
        enable,
        pipe,
        num_frames=job.request.num_frames,
        height=job.request.height,
        width=job.request.width,
        pattern=job.pattern,
        exchange=config.processes.exchange,
        mesh=loaded.mesh,
        backend=config.attention.backend,
        adapter=job.adapter,
        riflex=config.attention.riflex,
        riflex_ratio=config.attention.riflex_ratio if config.attention.riflex else None,
        riflex_k=config.attention.riflex_k if config.attention.riflex else None,
    )
    with (
        going_on(pipe, job, arguments["generator"], video.checkpoint, runtime) as loop,
        lvsa() as session,
        before_denoising(transformers.values(), encoded),
        telling_truncation(pipe),
        showing_phases(pipe, runtime.shown),
        without_decoding(pipe) as latents,
    ):
        steps.first = loop.first
        session.clock.listeners.append(steps)
        traced = config.output.profile and StepProfile(
            session, config.output.profile, range(loop.first, job.request.steps), runtime.device
        )
        with runtime.progress.generation(session, pipe, job.request.steps):
            frames = pipe(**arguments).frames
    helpers = helpers_in(job, runtime.group)
    if last or runtime.first or helpers is not None:
        residence.leave(transformers, for_good=last)
    meter.lap("denoising")
    facts = video.stem.name
    mine = rank_facts(job, session, steps, meter, runtime)
    if traced:
        mine["profile"] = traced.write(video.stem, runtime.number)
    runtime.share(facts, mine)
    if loaded.origins is None:
        if helpers is not None:
            help_decoding(lambda latents: pipe, helpers, runtime)
        return frames
    with progress("reading the weights for the record", runtime.shown):
        origins = loaded.origins.result()
    record = make_record(
        job,
        session,
        runtime.collect(facts),
        origins,
        first_step=loop.first,
        replica=runtime.replica,
        parallel=loaded.parallel,
    )
    files = Files(video.stem, config, meter, runtime.progress, video.checkpoint, video.repeats)
    files.finish(pipe, Denoised(record, latents.value, frames), helpers)
    return frames


if __name__ == "__main__":
    main()
