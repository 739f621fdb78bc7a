"""What a job will do, in numbers: printed by --dry-run, and kept in the record of every video."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lvsa.errors import DivisibilityError
from lvsa.exchange import EXCHANGES
from lvsa.exchange.base import token_bytes
from lvsa.launch.job import Job
from lvsa.launch.media.frames import grows_with_video
from lvsa.launch.media.sharing import sharing_line
from lvsa.launch.media.tiles import decodes_in_tiles
from lvsa.launch.meshes.drawing import mesh_lines
from lvsa.launch.meshes.ranking import ranking_lines
from lvsa.launch.notes import advice, without_effect
from lvsa.launch.picture import draw_pattern
from lvsa.launch.prediction import prediction_lines
from lvsa.launch.records.output import with_suffix
from lvsa.launch.rehearsal.lines import memory_lines
from lvsa.launch.sampling import described
from lvsa.pattern import Pattern
from lvsa.settings import joined
from lvsa.shards import Shards

logger = logging.getLogger(__name__)


def pattern_facts(pattern: Pattern) -> dict[str, Any]:
    """A pattern in numbers; frames are latent frames."""
    attended = pattern.frames_attended
    return {
        **pattern.parameters,
        "description": pattern.description,
        "offsets": pattern.n_offsets,
        "anchors_at_step_0": np.flatnonzero(pattern.anchors[0]).tolist(),
        "attended_frames_min": int(attended.min()),
        "attended_frames_mean": round(float(attended.mean()), 3),
        "attended_frames_max": int(attended.max()),
        "density": round(pattern.density, 6),
        "digest": pattern.digest,
    }


def attention_flops(job: Job) -> tuple[float, float]:
    """FLOPs of the video's attention in one layer and pass, all ranks: sparse (mean), dense.

    Two matrix products of 2·D multiply-adds' worth for every (query, key) pair and head.
    """
    dense = 4.0 * job.heads * job.head_dim * job.grid.tokens**2
    return dense * job.pattern.density, dense


def received_bytes(job: Job) -> dict[str, list[float]]:
    """Bytes of keys and values that each rank along the mesh's frames receives, by exchange.

    Per layer and guidance pass, mean over offsets. A pipeline that runs both passes as one batch on
    the same ranks receives twice as much per call.
    """
    shards = Shards(job.grid, job.mesh.frames)
    received = {name: np.zeros(shards.world) for name in EXCHANGES}
    # All exchanges for one matrix after the other: of a long video no two of them are held at once.
    for matrix in job.pattern.attended:
        for name, exchange in EXCHANGES.items():
            received[name] += exchange.received_tokens(shards, matrix)
    one = (
        token_bytes(1, job.heads // job.mesh.heads, job.head_dim, job.dtype) / job.pattern.n_offsets
    )
    return {name: (tokens * one).tolist() for name, tokens in received.items()}


def head_bytes(job: Job) -> float:
    """Bytes that each rank receives per layer and guidance pass for tokens exchanged for heads:
    queries, keys, values and outputs."""
    ranks, L = job.mesh.heads, job.shards.local_tokens
    return 2 * L * token_bytes(1, job.heads, job.head_dim, job.dtype) * (ranks - 1) / ranks


def tell(job: Job, stem: Path, said: set[str], aloud: bool = True, listed: bool = False) -> None:
    """Says what will run and what has no effect; draws the pattern where that is wanted.

    Args:
        stem: path of the output, without suffix.
        said: what was told of other videos, and is told once.
        aloud: on one rank of several.
        listed: whether it is one of a list of videos.
    """
    if not aloud:
        return
    output = job.config.output
    for level, text in (
        *((logging.WARNING, f"no effect: {setting}") for setting in without_effect(job)),
        *advice(job),
    ):
        if text not in said:
            logger.log(level, "%s", text)
            said.add(text)
    plan = report(job)
    if plan not in said:
        said.add(plan)
        memory = memory_lines(job, listed) if output.dry_run else []
        logger.info("the plan:\n%s", "\n".join([plan, *memory]))
    if output.dry_run or output.show_mask:
        picture = with_suffix(stem, ".mask.png")
        draw_pattern(job.pattern, picture, world=job.world, steps=job.request.steps)
        logger.info("wrote %s", picture)


def report(job: Job) -> str:
    """The plan of a job for a reader."""
    T, P, S = job.grid.frames, job.grid.tokens_per_frame, job.grid.tokens
    request, facts = job.request, pattern_facts(job.pattern)
    sparse, dense = attention_flops(job)
    lines = [
        f"model      {job.source.name} ({job.source.pipeline_class}, adapter {job.adapter.name!r})",
        f"video      {request.num_frames} frames of {request.height} × {request.width} pixels, "
        f"{request.num_frames / request.fps:.1f} s at {request.fps} fps; {request.steps} steps, "
        f"guidance {request.guidance:g}",
        f"sampling   {described(job.skeleton, request.sampling, request.guidance, request.steps)}",
        f"kernel     {job.kernel}",
        f"decoding   {_decoding_line(job)}",
        f"sequence   T × P = {T} latent frames × {P} tokens = {S} tokens; {job.layers} layers of "
        f"{job.heads} heads × {job.head_dim}, {str(job.dtype).removeprefix('torch.')}",
        f"horizon    {job.horizon} latent frames",
        f"pattern    {_pattern_line(job)}",
        f"anchors    {joined(facts['anchors_at_step_0'], 24)} at step 0",
        f"attended   {facts['attended_frames_min']} / {facts['attended_frames_mean']:.1f} / "
        f"{facts['attended_frames_max']} frames a query (min / mean / max); density "
        f"{facts['density']:.3f}",
        f"attention  {sparse / 1e12:.4g} TFLOPs per layer and pass; dense {dense / 1e12:.4g} "
        f"({dense / sparse:.2f}×)",
    ]
    try:
        shards = job.shards
    except DivisibilityError as error:
        return "\n".join([*lines, f"shards     {error}"])
    L = shards.local_tokens
    lines.append(
        f"shards     {job.world} rank(s) of {L} tokens = {L / P:.4g} frames"
        + ("" if L % P == 0 else "; cuts fall inside frames, which changes nothing")
    )
    video = replace(job.mesh, replica=1)
    if job.mesh.replica > 1:
        lines.append(
            f"replicas   {job.mesh.replica} of {video.world} rank(s), each with requests of its own"
        )
    if video.world > video.frames:
        lines.append(f"mesh       {video}")
    if job.world > 1:
        lines.append(
            "received   MB per rank, layer and guidance pass (min / mean / max over ranks):"
        )
    if job.mesh.heads > 1:
        lines.append(f"             heads      {head_bytes(job) / 1e6:.4g}")
    if job.mesh.frames > 1:
        for name, values in received_bytes(job).items():
            low, mean, high = min(values) / 1e6, float(np.mean(values)) / 1e6, max(values) / 1e6
            mark = "  ← this job" if name == job.config.processes.exchange else ""
            lines.append(f"             {name:<10} {low:.4g} / {mean:.4g} / {high:.4g}{mark}")
    if job.config.output.dry_run:
        lines += mesh_lines(job)
    lines += prediction_lines(job) + ranking_lines(job)
    return "\n".join(lines)


def _decoding_line(job: Job) -> str:
    growth, who = grows_with_video(job.skeleton.vae, decodes_in_tiles(job)), sharing_line(job)
    if growth is None:
        how = "frames are written as they are decoded; memory does not grow with the video"
    else:
        how = f"memory grows with the video: {growth}"
    return how if who is None else f"{how}; {who}"


def _pattern_line(job: Job) -> str:
    pattern = job.pattern
    if not job.config.attention.lvsa:
        return "dense (no --lvsa)"
    if pattern.is_dense:
        return "dense: the video is not longer than what is attended anyway"
    return pattern.description
