"""Whether a job fits into a GPU, and which settings would make it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lvsa.errors import LVSAError
from lvsa.launch.config import OffloadName
from lvsa.launch.job import Job
from lvsa.launch.rehearsal.estimate import PHASES, Estimate
from lvsa.shards import Shards

GB = 1e9
# Multiples of the job's ranks, and offloading: one changed at a time, from what costs least.
STEPS: tuple[tuple[int, OffloadName], ...] = (
    (1, "none"),
    (1, "model"),
    (2, "none"),
    (4, "none"),
    (8, "none"),
    (1, "group"),
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
        lines.append("             nothing that was tried: tiles, offloading, more ranks")
    return lines


def fits(estimate: Estimate, gigabytes: float, phases: Sequence[str] = PHASES) -> bool:
    """Whether a GPU has room for the first rank in these phases, with the margin."""
    return estimate.most(phases)[1].with_margin <= gigabytes * GB


def settings_that_fit(estimate: Estimate, gigabytes: float) -> Iterator[tuple[str, Estimate]]:
    """Flags beside those that are given, the cheapest first, and the job with them.

    Tiles, whose seams may show, only where it does not fit without; of numbers of ranks the least.
    """
    enough = False
    for times, offload in STEPS:
        for tiled in (False, True):
            if enough and times > 1:
                continue
            job = _changed(estimate.job, times, offload, tiled)
            if job is None:
                continue
            # What it changes nothing about must fit already: a rehearsal takes seconds.
            same = Estimate(replace(job, mesh=estimate.job.mesh), estimate.rehearsals)
            lower = {"decoding": tiled, "denoising": times > 1}
            if not fits(same, gigabytes, [p for p in PHASES if not lower.get(p)]):
                continue
            other = Estimate(job, estimate.rehearsals)
            if fits(other, gigabytes):
                enough |= times > 1
                yield _flags(estimate.job, job), other
                break


def _changed(job: Job, times: int, offload: OffloadName, tiled: bool) -> Job | None:
    """The job with one more setting, or with tiles as well; None where that cannot be, or is."""
    tuning = job.config.tuning
    if tiled and (
        tuning.vae_tiling or job.adapter.tiled_vae or not hasattr(job.skeleton.vae, "enable_tiling")
    ):
        return None
    wanted = replace(tuning, vae_tiling=tuning.vae_tiling or tiled)
    if offload != "none":
        if tuning.offload in (offload, "group"):
            return None
        wanted = replace(wanted, offload=offload)
    elif times == 1 and not tiled:
        return None
    mesh = replace(job.mesh, frames=job.mesh.frames * times)
    try:
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
    if new.vae_tiling != old.vae_tiling:
        flags.append("--vae-tiling")
    return " ".join(flags)


def _most(estimate: Estimate) -> str:
    phase, need = estimate.most()
    return f"{need.with_margin / GB:.1f} GB with the margin, in {phase}"
