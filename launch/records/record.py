"""The JSON record beside every video: what was asked for, what ran, what it took."""

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lvsa.adapters.install.enable import LVSASession
from lvsa.comm import group_size
from lvsa.launch.inputs import Request
from lvsa.launch.job import Job
from lvsa.launch.media.sharing import Helpers
from lvsa.launch.meter import Meter, StepTimer, largest_peak, merged
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.output import versions
from lvsa.launch.records.provenance import digest, hardware, input_digests
from lvsa.launch.report import attention_flops, pattern_facts, received_bytes
from lvsa.launch.sampling import scheduler_facts


def rank_facts(
    job: Job, session: LVSASession, steps: StepTimer, meter: Meter, runtime: Runtime
) -> dict[str, Any]:
    """What one rank measured in a generation, and the attention kernel that it ran."""
    kernel = session.attention.backend.check(runtime.device, job.dtype, job.head_dim)
    received = session.attention.received
    return {
        "rank": runtime.number,
        **hardware(runtime.device),
        "kernel": kernel,
        "seconds_per_step": [round(s, 4) for s in steps.seconds()],
        "peak_memory_bytes": largest_peak(meter.peaks),
        "peak_memory_by_part": meter.peaks,
        "attention_calls": received.calls,
        "kv_bytes_received": received.kv_bytes,
        "text_bytes_received": received.text_bytes,
        "head_bytes_received": received.head_bytes,
    }


def settled(request: Request) -> dict[str, Any]:
    """What the user left open or not, as it was settled."""
    return {
        "num_frames": request.num_frames,
        "height": request.height,
        "width": request.width,
        "steps": request.steps,
        "guidance": request.guidance,
        "fps": request.fps,
        "seed": request.seed,
        "negative_prompt": request.negative_prompt,
        **{name: value for name, value in asdict(request.sampling).items() if name != "source"},
    }


def make_record(
    job: Job,
    session: LVSASession,
    ranks: list[dict[str, Any]],
    origins: dict[str, Any],
    first_step: int,
    replica: int,
    parallel: str | None = None,
) -> dict[str, Any]:
    """The record of denoised latents; that of a video says as well what `finished` adds.

    Args:
        ranks: `rank_facts` of all ranks that made them.
        origins: code and weights, from `provenance`.
        first_step: that was computed; those before were done by a run that was interrupted.
        replica: number of the one that made it.
        parallel: why mesh and exchange are what they are, where they were chosen.
    """
    grid = job.grid
    sparse, dense = attention_flops(job)
    return {
        "config": {
            **job.config.as_dict(),
            # Of a hub model the commit that was loaded, which a branch may have left since.
            "revision": job.source.revision,
            # The text itself, which makes the video again without its file.
            "negative_prompt": job.request.negative_prompt,
            "negative_prompt_file": None,
            # Who makes it again has not asked for anything to be replaced.
            "overwrite": False,
            "fresh": False,
            # The video is one replica's, whatever the others made.
            "replicas": 1,
        },
        "model": {
            "pipeline": job.source.pipeline_class,
            "adapter": job.adapter.name,
            "lvsa_blocks": session.blocks,
            "horizon": job.horizon,
            "dtype": str(job.dtype).removeprefix("torch."),
        },
        "request": settled(job.request),
        "scheduler": {**scheduler_facts(job.skeleton), "source": job.request.sampling.source},
        "sequence": {
            "latent_frames": grid.frames,
            "tokens_per_frame": grid.tokens_per_frame,
            "tokens": grid.tokens,
            "mesh": asdict(job.mesh),
            "replica": replica,
            "parallel": parallel,
            "ranks": job.world,
            "tokens_per_rank": job.shards.local_tokens,
        },
        "pattern": pattern_facts(job.pattern),
        "attention_flops_per_layer_and_pass": {"lvsa": sparse, "dense": dense},
        "kv_bytes_per_rank_layer_and_pass_planned": received_bytes(job)[
            job.config.processes.exchange
        ],
        "first_step": first_step,
        "seconds_per_step_median": _median(ranks[0]["seconds_per_step"]),
        "peak_memory_bytes": max(rank["peak_memory_bytes"] for rank in ranks),
        "peak_memory_by_part": merged(rank["peak_memory_by_part"] for rank in ranks),
        "kv_bytes_received": sum(rank["kv_bytes_received"] for rank in ranks),
        "ranks": ranks,
        **origins,
        "inputs": input_digests(job.config.video),
        "versions": versions(),
    }


def measured(record: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """A record with what the first rank has measured since, which decodes and writes alone."""
    peaks = merged([record.get("peak_memory_by_part", {}), meter.peaks])
    most = max(record["peak_memory_bytes"], largest_peak(meter.peaks))
    facts = {"peak_memory_bytes": most, "peak_memory_by_part": peaks, "seconds": meter.seconds}
    return {**record, **facts}


def meter_of(record: dict[str, Any], device: torch.device) -> Meter:
    """The meter of a job that goes on from a record; earlier versions kept no peaks by part."""
    return Meter(device, record["seconds"], record.get("peak_memory_by_part"))


def decoding_facts(helpers: Helpers | None) -> dict[str, Any]:
    """How many ranks decoded a video, and what they shared of it: tiles, rows, or nothing."""
    if helpers is None:
        return {"ranks": 1, "shared": None}
    return {"ranks": group_size(helpers.group), "shared": helpers.shared}


def finished(
    record: dict[str, Any], meter: Meter, video: Path, decoding: dict[str, Any]
) -> dict[str, Any]:
    """The record of a video that was made of latents.

    Args:
        record: that of the latents.
        meter: of the first rank.
        video: the file that was written.
        decoding: who decoded it.
    """
    file = {"sha256": digest(video), "bytes": video.stat().st_size}
    return {**measured(record, meter), "decoding": decoding, "video": file}


def _median(seconds: list[float]) -> float | None:
    """None where an interrupted run had done all steps."""
    return round(median(seconds), 4) if seconds else None
