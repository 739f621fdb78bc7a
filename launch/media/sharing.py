"""Who decodes a video: its first rank alone, or all of its ranks, and what they share then.

Tiles are shared as they are, to the same bits (`lvsa.launch.media.tiles`); whole frames by bands of
rows, to the same values but for rounding (`lvsa.launch.media.rows`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import distributed as dist

from lvsa.errors import LVSAError
from lvsa.launch.media.rows import SERVED, WORTH, distvae_missing, most_ranks, sharing_rows, work
from lvsa.launch.media.tiles import decodes_in_tiles, sharing_tiles

if TYPE_CHECKING:
    from lvsa.launch.job import Job

Shared = Literal["tiles", "rows"]


@dataclass(frozen=True)
class Helpers:
    """The ranks that decode a video together, its first one included.

    Args:
        group: all of them.
        shared: what each has a part of.
    """

    group: dist.ProcessGroup
    shared: Shared


def shared_in(job: "Job") -> Shared | None:
    """What the ranks of a job share of its decoding; None where the first decodes alone."""
    asked, several = job.config.processes.vae_parallel, job.mesh.video > 1
    if asked == "off" or not several or job.config.output.output == "latents":
        return None
    if decodes_in_tiles(job):
        return "tiles"
    reason = _obstacle(job) or (_better_alone(job) if asked == "auto" else None)
    return "rows" if reason is None else None


def helpers_in(job: "Job", group: dist.ProcessGroup | None) -> Helpers | None:
    """The ranks of a group that decode a job's video together; None where the first does alone."""
    shared = shared_in(job)
    return None if shared is None or group is None else Helpers(group, shared)


@contextmanager
def sharing(vae: Any, helpers: Helpers | None) -> Iterator[None]:
    """A VAE that these ranks decode with together, while the context lasts; as it is without any.

    All of them call its ``decode`` with the same latents. The first gets the video, the others a
    tensor without frames.
    """
    if helpers is None:
        yield
        return
    shares = sharing_tiles if helpers.shared == "tiles" else sharing_rows
    with shares(vae, helpers.group):
        yield


def check_sharing(job: "Job") -> None:
    """Stops where all ranks are to decode, and cannot.

    Raises:
        LVSAError: without DistVAE where it is needed, for more ranks than frames have rows, or with
            --offload group; names what would work.
    """
    if not _asked_for_rows(job) or not isinstance(job.skeleton.vae, SERVED):
        return
    reason = _obstacle(job)
    if reason is not None:
        raise LVSAError(
            f"--vae-parallel on: {reason}. --vae-tiling has tiles that all ranks share; with "
            "--vae-parallel off the first one decodes"
        )


def sharing_without_effect(job: "Job") -> list[tuple[bool, str]]:
    """Why --vae-parallel on changes nothing: whether that is so, and the reason."""
    asked = job.config.processes.vae_parallel == "on"
    return [
        (asked and job.mesh.video == 1, "--vae-parallel on: one process decodes everything"),
        (
            _asked_for_rows(job) and not isinstance(job.skeleton.vae, SERVED),
            f"--vae-parallel on: whole frames of {type(job.skeleton.vae).__name__} are decoded by "
            "one rank; --vae-tiling has tiles that all share",
        ),
    ]


def sharing_line(job: "Job") -> str | None:
    """Who decodes, and why it is not all of several ranks, for a reader of the plan."""
    if job.mesh.video == 1:
        return None
    shared = shared_in(job)
    if shared is not None:
        how = "tiles in turn" if shared == "tiles" else "every frame, a band of rows each (DistVAE)"
        return f"{job.mesh.video} ranks decode {how}"
    auto = job.config.processes.vae_parallel == "auto"
    reason = (_obstacle(job) or _better_alone(job)) if auto else None
    return "the first rank decodes" + ("" if reason is None else f" ({reason})")


def _asked_for_rows(job: "Job") -> bool:
    several = job.mesh.video > 1 and job.config.output.output != "latents"
    return several and job.config.processes.vae_parallel == "on" and not decodes_in_tiles(job)


def _obstacle(job: "Job") -> str | None:
    """Why ranks cannot share whole frames; None where they can."""
    vae, ranks = job.skeleton.vae, job.mesh.video
    if not isinstance(vae, SERVED):
        return f"whole frames of {type(vae).__name__} are decoded by one rank"
    if job.config.tuning.offload == "group":
        return "--offload group does not bring the layers of DistVAE; --offload model does"
    rows = job.request.height // job.adapter.spatial_factor(job.skeleton)
    if ranks > (most := most_ranks(vae, rows)):
        return f"{rows} rows of latents are shared by {most} ranks at most, not {ranks}"
    return distvae_missing()


def _better_alone(job: "Job") -> str | None:
    """Why ranks do not share whole frames by themselves, though they can; None where they do."""
    if job.device.type != "cpu" or job.config.processes.gpu_memory is not None:
        return (
            "GPUs round convolutions to TF32: decoding by all ranks, --vae-parallel on, may change "
            "pixels by about 1e-3"
        )
    pixels = job.request.height * job.request.width // job.adapter.spatial_factor(job.skeleton) ** 2
    small = work(job.skeleton.vae, pixels) < WORTH
    return "by itself it has so small frames sooner" if small else None
