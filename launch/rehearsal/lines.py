"""What a generation takes of memory, for whoever reads the plan of --dry-run."""

from lvsa.errors import DivisibilityError
from lvsa.launch.job import Job
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


def memory_lines(job: Job) -> list[str]:
    """Phase by phase what a rank needs, and whether it fits where --gpu-memory says into what."""
    try:
        _ = job.shards
    except DivisibilityError:
        return ["memory     not estimated: the tokens do not divide among the ranks"]
    if missing := missing_networks(job):
        return [f"memory     not estimated: {job.source.name} has no {', '.join(missing)}"]
    estimate = Estimate(job, Rehearsals(job))
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
    loaded = [estimate.loaded(), *([estimate.loaded(first=False)] if several else [])]
    lines += [
        f"           most in {phase}: a GPU should have {need.with_margin / GB:.1f} GB, with a "
        f"margin of {MARGIN_SHARE:.0%} of what is no weight, and {MARGIN_BYTES / GB:g} GB",
        "           host: the weights of every rank pass through its host's memory: "
        + " | ".join(f"{n / GB:.1f} GB" for n in loaded),
        *_not_counted(job),
    ]
    gigabytes = job.config.processes.gpu_memory
    return lines if gigabytes is None else [*lines, *fitting_lines(estimate, gigabytes)]


def _sum(need: Need) -> str:
    return f"{need.weights / GB:6.2f} + {need.activations / GB:5.2f} = {need.least / GB:6.2f}"


def _not_counted(job: Job) -> list[str]:
    """What is asked for and not in the numbers."""
    tuning = job.config.tuning
    missing = [
        *([f"what --cache {tuning.cache} keeps"] if tuning.cache else []),
        *(["buffers of compiled blocks"] if tuning.compile else []),
    ]
    return [f"           not counted: {', '.join(missing)}"] if missing else []
