"""The meshes that a video could be made on, the fastest first: lines of --dry-run."""

from lvsa.cost import StepCost, costs
from lvsa.hardware import Hardware, find_hardware
from lvsa.launch.job import Job
from lvsa.launch.meshes.work import work_of_job
from lvsa.mesh import possible

SHOWN = 10


def ranked(job: Job, hardware: Hardware) -> list[StepCost]:
    """Every mesh of a job's ranks with every exchange, the fastest on paper first.

    Empty where there is no model of the job's attention.
    """
    work = work_of_job(job)
    meshes = possible(job.mesh.video, job.grid, job.heads, passes=work.passes)
    backend = job.config.attention.backend
    return costs(work, job.grid, job.pattern.attended[0], meshes, hardware, backend)


def ranking_lines(job: Job) -> list[str]:
    """Lines for the plan of a job; none on one rank, or where no hardware is named."""
    name = job.config.processes.hardware
    if name is None or job.mesh.video == 1:
        return []
    hardware = find_hardware(name)
    found = ranked(job, hardware)
    if not found:
        return []
    shown = found[:SHOWN]
    here = [cost for cost in found if _is_of(cost, job)]
    nodes = -(-job.mesh.video // hardware.per_node)
    lines = [
        f"meshes     seconds a step, on paper, not measured; {job.mesh.video} × {hardware.name}, "
        f"{nodes} node(s) of {hardware.per_node}, {hardware.inside.name} inside"
        + (f", {hardware.between.name} between" if nodes > 1 else ""),
        "           waits for frames, heads, outputs and shared weights; received MB of frames and "
        "heads a layer and pass, worst rank",
        f"             {'total':>9} {'attention':>9} {'rest':>9} {'frames':>9} {'heads':>9} "
        f"{'outputs':>9} {'weights':>9} {'MB inside':>9} {'between':>9}",
    ]
    for cost in [*shown, *(cost for cost in here if cost not in shown)]:
        seconds = (
            cost.seconds, cost.attention, cost.rest, cost.frames, cost.heads, cost.outputs,
            cost.weights,
        )  # fmt: skip
        columns = [f"{value:9.4g}" for value in (*seconds, cost.inside / 1e6, cost.between / 1e6)]
        mark = "  ← this job" if cost in here else ""
        lines.append(f"             {' '.join(columns)}  {described(cost)}{mark}")
    if len(found) > SHOWN:
        lines.append(f"             {len(found) - SHOWN} more are slower")
    return lines


def described(cost: StepCost) -> str:
    """A mesh with its exchange, in words."""
    travels = cost.mesh.frames > 1
    return f"{cost.mesh}{f', {cost.exchange}' if travels else ''}"


def _is_of(cost: StepCost, job: Job) -> bool:
    mesh, exchange = job.mesh, job.config.processes.exchange
    same = (cost.mesh.guidance, cost.mesh.frames, cost.mesh.heads) == (
        mesh.guidance,
        mesh.frames,
        mesh.heads,
    )
    return same and (mesh.frames == 1 or cost.exchange == exchange)
