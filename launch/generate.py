"""A long video from a prompt, on one process or many.

    torchrun --nproc_per_node=8 launch/generate.py --model DIR --prompt TEXT --num-frames 321 --lvsa

The way data flows: arguments → frozen config → processes → the model's configs → frame grid →
pattern → shards → weights → LVSA and plan on the pipeline → denoising → decoding → mp4 and record.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvsa.adapters.install.enable import enable
from lvsa.adapters.install.replication import Replication
from lvsa.comm import check_agreement
from lvsa.launch.config import GenerateConfig, parse
from lvsa.launch.encoder import check_encoder, write_video
from lvsa.launch.inputs import call_arguments
from lvsa.launch.job import Job, make_job, without_effect
from lvsa.launch.meter import StepTimer, Stopwatch
from lvsa.launch.output import output_stem, write_record
from lvsa.launch.picture import draw_pattern
from lvsa.launch.record import make_record, rank_facts
from lvsa.launch.report import report
from lvsa.launch.runtime import (
    Runtime,
    rank_of_environment,
    run_reporting,
    set_up_logging,
    start,
)
from lvsa.launch.weights import load_pipeline

logger = logging.getLogger("lvsa.launch.generate")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the launcher and exits with its code: 0, 2 for a user's mistake, 1 for a failure."""
    rank = rank_of_environment()
    set_up_logging(rank)

    def work() -> None:
        config = parse(argv, quiet=rank != 0)
        with start(config.device, config.timeout) as runtime:
            run(config, runtime)

    sys.exit(run_reporting(work))


def run(config: GenerateConfig, runtime: Runtime) -> Any:
    """A generation, or its plan alone for --dry-run.

    Returns:
        On the first rank the decoded video ``[1, F, H, W, 3]`` in 0 … 1, on the others their
        latents; None for a dry run.
    """
    check_agreement(config.as_dict(), runtime.group)
    # One rank reads images and videos, which may be large, and only on its node.
    planned = runtime.on_first(lambda: make_job(config, runtime.world, runtime.device))
    request = runtime.from_first(None if planned is None else planned.request)
    job = runtime.together(
        lambda: planned or make_job(config, runtime.world, runtime.device, request)
    )
    stem = runtime.on_first(lambda: output_stem(config, job.request))
    if stem is not None:
        tell(job, stem)
    if config.dry_run:
        return None

    runtime.on_first(check_encoder)
    seconds = Stopwatch()
    pipe = runtime.together(
        lambda: load_pipeline(job.source, job.dtype, job.adapter, runtime.first)
    )
    pipe.to(runtime.device)
    pipe.set_progress_bar_config(disable=not runtime.first, desc="denoising", unit="step")
    seconds.lap("loading")

    steps = StepTimer(runtime.device)
    replication = Replication(pipe, job.adapter.replicated_methods, runtime.group, runtime.device)
    with enable(
        pipe,
        num_frames=job.request.num_frames,
        height=job.request.height,
        width=job.request.width,
        pattern=job.pattern,
        exchange=config.exchange,
        backend=config.backend,
        adapter=job.adapter,
        riflex=config.riflex,
        riflex_ratio=config.riflex_ratio if config.riflex else None,
    ) as session:
        session.clock.listeners.append(steps)
        # The first rank decodes; the others are done when the last step is.
        video = pipe(**call_arguments(job.request, job.adapter, pipe, runtime.first)).frames
    replication.remove()
    seconds.lap("generation")
    runtime.share(rank_facts(session, steps, runtime))
    if stem is not None:
        write_video(stem.with_name(f"{stem.name}.mp4"), video[0], job.request.fps)
        seconds.lap("writing")
        write_record(
            stem.with_name(f"{stem.name}.json"),
            make_record(job, session, runtime.collect(), seconds.laps, runtime.device),
        )
        logger.info("wrote %s.mp4 and its record %s.json", stem, stem.name)
    return video


def tell(job: Job, stem: Path) -> None:
    """Says what will run and what was asked for in vain; draws the pattern where it is wanted."""
    for setting in without_effect(job):
        logger.warning("no effect: %s", setting)
    video = stem.with_name(f"{stem.name}.mp4")
    if video.exists() and not job.config.dry_run:
        logger.warning("%s exists and will be replaced; --output-name gives another", video)
    logger.info("the plan:\n%s", report(job))
    if job.config.dry_run or job.config.show_mask:
        picture = stem.with_name(f"{stem.name}.mask.png")
        draw_pattern(job.pattern, picture, world=job.world, steps=job.request.steps)
        logger.info("wrote %s", picture)


if __name__ == "__main__":
    main()
