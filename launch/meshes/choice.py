"""Which mesh and exchange a job takes, where its flags leave them open (--parallel auto).

One choice for all videos of a job, by the predicted seconds of a step of the first. It follows from
settings, model, hardware and nodes alone: the same command on the same machines chooses the same,
on all ranks, since the first of them chooses for all. Where nothing is known of the hardware,
nothing is chosen.
"""

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import distributed as dist

from lvsa.cost import StepCost, best, costs
from lvsa.errors import LVSAError
from lvsa.hardware import HARDWARE, Hardware, find_hardware
from lvsa.launch.config import ExchangeName, GenerateConfig, ProcessesConfig
from lvsa.launch.job import Job, Model, make_job
from lvsa.launch.meshes.ranking import described
from lvsa.launch.meshes.work import work_of_job
from lvsa.launch.requests.lists import Request
from lvsa.mesh import possible

if TYPE_CHECKING:
    from lvsa.launch.processes.runtime import Runtime

logger = logging.getLogger(__name__)

DRIVER_NAMES = {
    "A100-SXM": "a100",
    "H100 80GB HBM3": "h100",
    "H200": "h200",
    "B200": "b200",
    "L40S": "l40s",
    "RTX 4090": "rtx4090",
    "RTX 5090": "rtx5090",
}
"""Part of a driver's name for a GPU → its entry."""
OTHER_LINKS = ("PCIe", "NVL", "GH200", "GB200")
"""Parts of the names of cards that are connected in other ways; they have no entry."""


@dataclass(frozen=True)
class Choice:
    """What the ranks of a job share, and why.

    Args:
        processes: settings, with nothing left open.
        reason: one line.
    """

    processes: ProcessesConfig
    reason: str

    def on(self, request: Request) -> Request:
        """A request of the job, with what was chosen."""
        return replace(request, config=replace(request.config, processes=self.processes))


def choose(requests: Sequence[Request], model: Model, runtime: "Runtime") -> Choice | None:
    """Chooses for all ranks, which must all call this; the first says it.

    Returns:
        None where nothing is open: one rank for a video, --parallel manual, or a video that is made
        again as its record says.
    """
    config = requests[0].config
    planned = config.processes.ranks if config.output.dry_run else None
    # What does not divide is told with all other mistakes, when every request is looked at.
    world = (planned or runtime.world) // config.processes.replicas
    repeats = requests[0].repeats is not None
    if world <= 1 or repeats or config.processes.parallel == "manual":
        return None
    machine = None if planned else _machine(runtime)

    def settled() -> Choice:
        hardware, unknown = hardware_here(config.processes, machine)
        if hardware is None:
            return _as_given(config.processes, unknown)
        return fastest(requests, model, world, runtime.device, hardware)

    # The first rank's choice, whatever another one's arithmetic would come to.
    choice = runtime.from_first(runtime.on_first(settled))
    assert choice is not None
    if runtime.first:
        logger.info("--parallel auto: %s", choice.reason)
    return choice


def fastest(
    requests: Sequence[Request],
    model: Model,
    world: int,
    device: torch.device,
    hardware: Hardware,
) -> Choice:
    """The mesh and exchange on which a step of the first video is predicted to be fastest, of those
    that all videos can be made on; settings away from their defaults stay as they are."""
    given = requests[0].config.processes
    try:
        jobs = [_job(config, world, device, model) for config in _kinds(requests)]
    except LVSAError as error:
        # It is told with all other mistakes of the list, when every request is looked at.
        return _as_given(given, f"it cannot be planned: {str(error).splitlines()[0]}")
    meshes = [_open(job, given, world) for job in jobs]
    common = [mesh for mesh in meshes[0] if all(mesh in others for others in meshes[1:])]
    if not common:
        return _as_given(given, f"no mesh of {world} ranks divides every video")
    job = jobs[0]
    work, attended = work_of_job(job), job.pattern.attended[0]
    backend = job.config.attention.backend
    found = costs(work, job.grid, attended, common, hardware, backend)
    if not found:
        return _as_given(
            given,
            f"there is no model of {str(job.dtype).removeprefix('torch.')} by the backend "
            f"{backend!r} on {hardware.name}",
        )
    taken = best(found)
    return Choice(_set_on(given, taken), _reason(taken, found, hardware))


def _reason(taken: StepCost, found: Sequence[StepCost], hardware: Hardware) -> str:
    slowest = max(found, key=lambda cost: cost.seconds)
    return (
        f"{described(taken)}: {taken.seconds:.3g} s a step on {hardware.name}, predicted on paper; "
        f"best of {len(found)} settings, the slowest {slowest.seconds:.3g} s ({described(slowest)})"
    )


def _as_given(processes: ProcessesConfig, why: str) -> Choice:
    return Choice(processes, f"as given, since {why}")


def _set_on(processes: ProcessesConfig, cost: StepCost) -> ProcessesConfig:
    """Settings that say what was chosen, so that the record makes the same again."""
    travels = cost.mesh.frames > 1
    return replace(
        processes,
        parallel="manual",
        ulysses=cost.mesh.heads,
        guidance_parallel=cost.mesh.guidance > 1,
        exchange=cast("ExchangeName", cost.exchange) if travels else processes.exchange,
    )


def _open(job: Job, given: ProcessesConfig, world: int) -> list[tuple]:
    """Meshes and exchanges that the flags leave open for one video."""
    plain = ProcessesConfig()
    exchanges = {} if given.exchange == plain.exchange else {"exchanges": (given.exchange,)}
    two = job.request.guidance > 1 and _guidance_can(job)
    return possible(
        world,
        job.grid,
        job.heads,
        **exchanges,
        passes=2 if two else 1,
        guidance=True if given.guidance_parallel else None,
        ulysses=None if given.ulysses == plain.ulysses else given.ulysses,
    )


def _guidance_can(job: Job) -> bool:
    """Whether both passes of a model's guidance may have ranks of their own."""
    try:
        job.adapter.check_guidance_parallel(job.skeleton)
    except LVSAError:
        return False
    return True


def _kinds(requests: Sequence[Request]) -> list[GenerateConfig]:
    """One configuration for each size, length and guidance among the requests."""
    kinds: dict[tuple, GenerateConfig] = {}
    for request in requests:
        config = request.config
        video, sampling = config.video, config.sampling
        size = video.num_frames, video.height, video.width
        starts = video.image is None, video.last_image is None, video.video is None
        kinds.setdefault((*size, sampling.guidance, *starts), config)
    return list(kinds.values())


def _job(config: GenerateConfig, world: int, device: torch.device, model: Model) -> Job:
    """A plan whose tokens need not divide among all ranks."""
    plain = replace(config.processes, replicas=1, ulysses=1, guidance_parallel=False, ranks=None)
    dry = replace(config.output, dry_run=True)
    return make_job(replace(config, processes=plain, output=dry), world, device, model=model)


def _machine(runtime: "Runtime") -> list[tuple[str, str]]:
    """Host and GPU of every rank, by the names that they go by."""
    device = runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    everyone: list[tuple[str, str]] = [("", "")] * runtime.world
    if runtime.world > 1:
        dist.all_gather_object(everyone, (socket.gethostname(), name), group=runtime.group)
    return everyone


def hardware_here(
    processes: ProcessesConfig, machine: Sequence[tuple[str, str]] | None
) -> tuple[Hardware | None, str]:
    """The hardware that is named or found, or None and why it is not known.

    Args:
        machine: host and GPU of every rank; None for a plan of ranks that need not be here.
    """
    named = processes.hardware
    if machine is None:
        return (None, "--hardware names none") if named is None else (find_hardware(named), "")
    hosts = [host for host, _ in machine]
    per_node = hosts.count(hosts[0])
    if any(
        hosts[i : i + per_node] != [hosts[i]] * per_node for i in range(0, len(hosts), per_node)
    ):
        return None, "nodes have different numbers of ranks"
    if named is not None:
        return replace(find_hardware(named), per_node=per_node), ""
    gpus = sorted({gpu for _, gpu in machine})
    key = known_as(gpus[0])
    if len(gpus) > 1 or key is None:
        return None, f"nothing is known of {', '.join(gpus)} (--hardware names one)"
    return replace(HARDWARE[key], per_node=per_node), ""


def known_as(gpu: str) -> str | None:
    """The entry of a GPU by its driver's name; None for one that has none."""
    if any(other in gpu for other in OTHER_LINKS):
        return None
    return next((key for name, key in DRIVER_NAMES.items() if name in gpu), None)
