"""Whether a job fits into a GPU, and which settings would make it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lvsa.errors import LVSAError
from lvsa.launch.config import OffloadName
from lvsa.launch.job import Job
from lvsa.launch.rehearsal.estimate import PHASES, Estimate, Need
from lvsa.launch.tuning.sharding import check_shared_weights
from lvsa.shards import Shards

GB = 1e9


class Change(NamedTuple):
    """What is tried of a job: a multiple of its ranks, and how its weights are kept."""

    times: int = 1
    offload: OffloadName = "none"
    shard: bool = False


# One changed at a time, from what costs least; ranks that are added may share weights as well.
CHANGES = (
    Change(),
    Change(shard=True),
    Change(offload="model"),
    *(Change(times, shard=shard) for times in (2, 4, 8) for shard in (False, True)),
    Change(offload="group"),
)
NAMED = 3
"""Settings that are named at most."""


def fitting_lines(estimate: Estimate, gigabytes: float) -> list[str]:
    """Yes or no, and where it is no the cheapest settings that fit, a line each.

    Args:
        estimate: of the job as it is asked for.
        gigabytes: of a GPU, 10⁹ bytes.
    """
    if fits(estimate, gigabytes):
        return [f"           {gigabytes:g} GB: yes, it fits"]
    lines = [f"           {gigabytes:g} GB: no, {_most(estimate)}; what fits:"]
    for flags, other in settings_that_fit(estimate, gigabytes):
        lines.append(f"             {flags}: {_most(other)}")
        if len(lines) > NAMED:
            break
    if len(lines) == 1:
        tried = "tiles, shared weights, offloading, more ranks"
        lines.append(f"             nothing that was tried: {tried}")
    return lines


def fits(estimate: Estimate, gigabytes: float, phases: Sequence[str] = PHASES) -> bool:
    """Whether a GPU has room for the first rank in these phases, with the margin."""
    return _room(estimate.most(phases)[1], gigabytes)


def settings_that_fit(estimate: Estimate, gigabytes: float) -> Iterator[tuple[str, Estimate]]:
    """Flags beside those that are given, the cheapest first, and the job with them.

    Tiles, whose seams may show, only where it does not fit without; of numbers of ranks the least.
    """
    fitting: set[Change] = set()
    for change in CHANGES:
        if change.times > 1 and any(_is_less(other, change) for other in fitting):
            continue
        for tiled in (False, True):
            job = _changed(estimate.job, change, tiled)
            if job is None:
                continue
            other = replace(estimate, job=job)
            # What it changes nothing about must fit already: a rehearsal takes seconds.
            lower = {"decoding": tiled, "denoising": change.times > 1}
            same = [phase for phase in PHASES if not lower.get(phase)]
            if not all(
                _room(Need(other.weights(p), estimate.activations(p)), gigabytes) for p in same
            ):
                continue
            if fits(other, gigabytes):
                fitting.add(change)
                yield _flags(estimate.job, job), other
                break


def _is_less(fitting: Change, change: Change) -> bool:
    """Whether more ranks are not worth trying, since it fits with fewer."""
    of_ranks = fitting.times > 1 or fitting.shard
    return of_ranks and fitting.offload == "none" and fitting.shard <= change.shard


def _room(need: Need, gigabytes: float) -> bool:
    return need.with_margin <= gigabytes * GB


def _changed(job: Job, change: Change, tiled: bool) -> Job | None:
    """The job with one more setting, or with tiles as well; None where that cannot be, or is."""
    tuning = job.config.tuning
    if tiled and (
        tuning.vae_tiling or job.adapter.tiled_vae or not hasattr(job.skeleton.vae, "enable_tiling")
    ):
        return None
    if change == Change() and not tiled:
        return None
    if change.offload != "none" and tuning.offload in (change.offload, "group"):
        return None
    mesh = replace(job.mesh, frames=job.mesh.frames * change.times)
    if change.shard and (tuning.shard_weights or mesh.video == 1):
        return None
    wanted = replace(
        tuning,
        vae_tiling=tuning.vae_tiling or tiled,
        offload=tuning.offload if change.offload == "none" else change.offload,
        shard_weights=tuning.shard_weights or change.shard,
    )
    try:
        check_shared_weights(wanted, job.source.pipeline_class)
        Shards(job.grid, mesh.sequence)
    except LVSAError:
        return None
    return replace(job, config=replace(job.config, tuning=wanted), mesh=mesh)


def _flags(job: Job, changed: Job) -> str:
    """What is different, as a user would ask for it."""
    old, new = job.config.tuning, changed.config.tuning
    flags = []
    if changed.mesh != job.mesh:
        flags.append(f"{changed.mesh.world} ranks")
    if new.offload != old.offload:
        flags.append(f"--offload {new.offload}")
    if new.shard_weights != old.shard_weights:
        flags.append("--shard-weights")
    if new.vae_tiling != old.vae_tiling:
        flags.append("--vae-tiling")
    return " ".join(flags)


def _most(estimate: Estimate) -> str:
    phase, need = estimate.most()
    return f"{need.with_margin / GB:.1f} GB with the margin, in {phase}"
