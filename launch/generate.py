"""A long video from a prompt, on one process or many.

    torchrun --nproc_per_node=8 launch/generate.py --model DIR --prompt TEXT --num-frames 321 --lvsa

The way data flows: arguments → frozen config → processes → the model's configs → frame grid →
pattern → shards → weights → LVSA and plan on the pipeline → denoising → decoding → mp4 and record.
"""

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvsa.launch.arguments import parse
from lvsa.launch.config import GenerateConfig
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.reporting import run_reporting

if TYPE_CHECKING:
    from lvsa.launch.processes.runtime import Runtime

logger = logging.getLogger("lvsa.launch.generate")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the launcher and exits with its code: 0, 2 for a user's mistake, 1 for a failure."""

    def work(place: Place) -> None:
        config = parse(argv, quiet=not place.first)
        from lvsa.launch.processes.runtime import start

        with start(config.processes, place) as runtime:
            run(config, runtime)

    sys.exit(run_reporting(work))


def run(config: GenerateConfig, runtime: "Runtime") -> Any:
    """A generation, or its plan alone for --dry-run.

    Returns:
        On the first rank the decoded video ``[1, F, H, W, 3]`` in 0 … 1, on the others their
        latents; None for a dry run.
    """
    # torch, diffusers and transformers come with these: seconds, for arguments that hold.
    from lvsa.adapters.install.enable import enable
    from lvsa.comm import check_agreement
    from lvsa.launch.inputs import call_arguments
    from lvsa.launch.job import make_job
    from lvsa.launch.loading.weights import load_pipeline
    from lvsa.launch.media.encoder import check_encoder, write_video
    from lvsa.launch.meter import StepTimer, Stopwatch
    from lvsa.launch.prompts import telling_truncation
    from lvsa.launch.records.output import output_stem, versions, write_record
    from lvsa.launch.records.provenance import Later, provenance
    from lvsa.launch.records.record import make_record, rank_facts
    from lvsa.launch.report import tell

    check_agreement(config.as_dict(), runtime.group)
    check_agreement(versions(), runtime.group, what="versions of packages")
    # One rank reads images and videos, which may be large, and only on its node.
    planned = runtime.on_first(lambda: make_job(config, runtime.world, runtime.device))
    request = runtime.from_first(None if planned is None else planned.request)
    job = runtime.together(
        lambda: planned or make_job(config, runtime.world, runtime.device, request)
    )
    stem = runtime.on_first(lambda: output_stem(config, job.request))
    if stem is not None:
        tell(job, stem)
    if config.output.dry_run:
        return None

    runtime.on_first(check_encoder)
    seconds = Stopwatch()
    pipe = runtime.together(
        lambda: load_pipeline(
            job.source,
            job.dtype,
            job.adapter,
            encodes=runtime.first,
            variant=config.model.variant,
            allow_pickle=config.model.allow_pickle,
        )
    )
    pipe.to(runtime.device)
    pipe.set_progress_bar_config(disable=not runtime.first, desc="denoising", unit="step")
    seconds.lap("loading")
    origins = Later(lambda: provenance(job)) if runtime.first else None

    steps = StepTimer(runtime.device)
    lvsa = enable(
        pipe,
        num_frames=job.request.num_frames,
        height=job.request.height,
        width=job.request.width,
        pattern=job.pattern,
        exchange=config.processes.exchange,
        backend=config.attention.backend,
        adapter=job.adapter,
        riflex=config.attention.riflex,
        riflex_ratio=config.attention.riflex_ratio if config.attention.riflex else None,
        riflex_k=config.attention.riflex_k if config.attention.riflex else None,
    )
    with lvsa as session, telling_truncation(pipe):
        session.clock.listeners.append(steps)
        # The first rank decodes; the others are done when the last step is.
        video = pipe(**call_arguments(job.request, job.adapter, pipe, runtime.first)).frames
    seconds.lap("generation")
    runtime.share(rank_facts(job, session, steps, runtime))
    if stem is not None and origins is not None:
        write_video(stem.with_name(f"{stem.name}.mp4"), video[0], job.request.fps)
        seconds.lap("writing")
        record = make_record(job, session, runtime.collect(), seconds.laps, origins.result())
        write_record(stem.with_name(f"{stem.name}.json"), record)
        logger.info("wrote %s.mp4 and its record %s.json", stem, stem.name)
    return video


if __name__ == "__main__":
    main()
