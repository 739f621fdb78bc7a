"""What attention would take on a GPU that need not be here: a few lines of --dry-run."""

from lvsa.cost import middle_rank
from lvsa.hardware import Hardware, find_hardware
from lvsa.launch.job import Job
from lvsa.pattern import Bools, dense
from lvsa.roofline import Prediction
from lvsa.shards import Shards


def prediction_lines(job: Job) -> list[str]:
    """Lines for the plan of a job; none where no hardware is named."""
    name = job.config.processes.hardware
    if name is None:
        return []
    hardware = find_hardware(name)
    sparse = _predicted(job, job.pattern.attended[0], hardware)
    if sparse is None:
        what = str(job.dtype).removeprefix("torch.")
        backend = job.config.attention.backend
        return [f"predicted  nothing: there is no model of {what} by the backend {backend!r}"]
    lines = [
        f"predicted  on {hardware.name}, on paper, not measured: {_line(sparse)}",
        f"           waves and padding keep {sparse.kept:.0%} of the kernel's best, "
        f"{sparse.rate.share:.0%} of the chip's {hardware.flops / 1e12:.0f} TFLOP/s "
        f"({sparse.rate.source})",
    ]
    if not job.pattern.is_dense:
        other = _predicted(job, dense(job.grid.frames).attended[0], hardware)
        assert other is not None
        lines.append(
            f"           dense {_line(other)}: {other.seconds / sparse.seconds:.2f}× as long"
        )
    return lines


def _predicted(job: Job, attended: Bools, hardware: Hardware) -> Prediction | None:
    """Attention of one layer and pass on a rank in the middle, at one offset."""
    found = middle_rank(
        Shards(job.grid, job.mesh.frames),
        attended,
        job.config.processes.exchange,
        hardware,
        heads=job.heads // job.mesh.heads,
        head_dim=job.head_dim,
        backend=job.config.attention.backend,
        dtype=job.dtype,
    )
    return None if found is None else found.prediction


def _line(prediction: Prediction) -> str:
    return (
        f"{prediction.seconds * 1e3:.3g} ms of attention a layer and pass, "
        f"{prediction.share:.0%} of the chip's rate"
    )
