"""What a generation takes of memory, for whoever reads the plan of --dry-run."""

from lvsa.errors import DivisibilityError
from lvsa.launch.job import Job
from lvsa.launch.media.sharing import shared_in
from lvsa.launch.rehearsal.estimate import (
    MARGIN_BYTES,
    MARGIN_SHARE,
    PHASES,
    Estimate,
    Need,
    Rehearsals,
)
from lvsa.launch.rehearsal.fitting import GB, fitting_lines
from lvsa.launch.rehearsal.networks import missing_networks


def memory_lines(job: Job, listed: bool = False) -> list[str]:
    """Phase by phase what a rank needs, and whether it fits where --gpu-memory says into what.

    Args:
        listed: whether it is one of a list of videos.
    """
    try:
        _ = job.shards
    except DivisibilityError:
        return ["memory     not estimated: the tokens do not divide among the ranks"]
    if missing := missing_networks(job):
        return [f"memory     not estimated: {job.source.name} has no {', '.join(missing)}"]
    estimate = Estimate(job, Rehearsals(job), listed)
    dtype = str(job.dtype).removeprefix("torch.")
    several = job.mesh.video > 1
    lines = [
        f"memory     GB that a rank needs at least, by phase: weights ({dtype}) + everything else"
        + (" = all, on the first rank | on any other" if several else " = all")
    ]
    for phase in PHASES:
        first, other = estimate.need(phase), estimate.need(phase, first=False)
        lines.append(f"             {phase:<10} {_sum(first)}" + f" | {_sum(other)}" * several)
    phase, need = estimate.most()
    lines += [
        f"           most in {phase}: a GPU should have {need.with_margin / GB:.1f} GB, with a "
        f"margin of {MARGIN_SHARE:.0%} of what is no weight, and {MARGIN_BYTES / GB:g} GB",
        *_host_lines(estimate, several),
        *_not_counted(job),
    ]
    gigabytes = job.config.processes.gpu_memory
    return lines if gigabytes is None else [*lines, *fitting_lines(estimate, gigabytes)]


def _sum(need: Need) -> str:
    return f"{need.weights / GB:6.2f} + {need.activations / GB:5.2f} = {need.least / GB:6.2f}"


def _host_lines(estimate: Estimate, several: bool) -> list[str]:
    """What a rank holds in its host's memory: weights that do not go straight to the device."""
    config = estimate.job.config
    if estimate.sharing > 1:
        read = estimate.read_for_all() / GB
        return [
            f"           in the host's memory of the first rank, which reads for all: {read:.2f}"
        ]
    if config.tuning.offload == "none" and not config.model.lora:
        return []
    ranks = (True, False) if several else (True,)
    sizes = " | ".join(f"{estimate.loaded(first) / GB:.2f}" for first in ranks)
    kept = "kept" if config.tuning.offload != "none" else "LoRAs are merged"
    return [f"           in the host's memory, where weights are {kept}: {sizes}"]


def _not_counted(job: Job) -> list[str]:
    """What is asked for and not in the numbers."""
    tuning = job.config.tuning
    missing = [
        *([f"what --cache {tuning.cache} keeps"] if tuning.cache else []),
        *(["buffers of compiled blocks"] if tuning.compile else []),
        *(["tiles that other ranks decode"] if shared_in(job) == "tiles" else []),
    ]
    lines = [f"           not counted: {', '.join(missing)}"] if missing else []
    if shared_in(job) == "rows":
        lines.append(
            f"           decoding is counted as that of whole frames, which {job.mesh.video} ranks "
            "share: an upper bound"
        )
    return lines
