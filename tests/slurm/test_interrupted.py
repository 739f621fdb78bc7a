"""Jobs of a real Slurm that are queued again in the middle: they end in the undisturbed bits."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.slurm.cluster import Cluster
from tests.slurm.test_generate import GPUS, SCRIPTS, VARIABLES, VIDEO, latents
from tests.support.launched import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

Moment = Callable[[Cluster, Path], bool]

NODES = ["--nodes=2", *GPUS]
# Slow enough to be met in the middle.
LONG = [*VIDEO, "--num-frames", "161", "--checkpoint-seconds", "0"]


def submitted(cluster: Cluster, folder: Path, options: list[str]) -> str:
    log = f"--output={folder}/job.log"
    return cluster.submit(
        SCRIPTS / "generate.sbatch", *LONG, "--output-dir", str(folder),
        options=[*options, log], variables=VARIABLES, folder=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("undisturbed")
    job = submitted(cluster, folder, NODES)
    assert cluster.wait(job)["JobState"] == "COMPLETED", (folder / "job.log").read_text()
    return latents(folder)


def first_step(_: Cluster, folder: Path) -> bool:
    """Whether a job has written its first checkpoint."""
    return any(folder.glob(".checkpoints/*/state.safetensors"))


def start(cluster: Cluster, _: Path) -> bool:
    """Whether torchrun runs on all nodes: it needs seconds before it answers signals itself."""
    return all(cluster.processes(node, "torchrun") for node in cluster.nodes)


def wait_for(moment: Moment, cluster: Cluster, folder: Path, timeout: float = 180) -> None:
    """Waits for a moment of the job that writes into this folder."""
    end = time.monotonic() + timeout
    while not moment(cluster, folder):
        assert time.monotonic() < end, (folder / "job.log").read_text()
        time.sleep(0.05)


def check(
    cluster: Cluster, job: str, folder: Path, undisturbed: torch.Tensor, restarts: int = 1
) -> None:
    ended, log = cluster.wait(job), (folder / "job.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(restarts)), log
    assert torch.equal(latents(folder), undisturbed)
    assert not (folder / ".checkpoints").exists()


INTERRUPTIONS: dict[str, Callable[[Cluster, str], object]] = {
    "requeued": lambda cluster, job: cluster.run("scontrol", "requeue", job),
    # Slurm sends USR1 to the batch script a minute before the limit; here it is sent at once.
    "time limit": lambda cluster, job: cluster.run("scancel", "--signal=USR1", "--batch", job),
    # As a node that is lost looks to the others, long before Slurm notices it.
    "processes killed": lambda cluster, job: cluster.kill_processes("n10"),
}


@pytest.mark.parametrize(
    ("how", "moment"),
    [*[(how, first_step) for how in INTERRUPTIONS], ("processes killed", start)],
)
def test_an_interrupted_job_is_queued_again(
    how: str, moment: Moment, cluster: Cluster, undisturbed: torch.Tensor, tmp_path: Path
) -> None:
    job = submitted(cluster, tmp_path, NODES)
    wait_for(moment, cluster, tmp_path)
    INTERRUPTIONS[how](cluster, job)
    cluster.start_at_once(job)
    check(cluster, job, tmp_path, undisturbed)
    if how != "requeued":
        assert "queued again" in (tmp_path / "job.log").read_text()


def test_a_mistake_is_not_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    """Its node may be the first to end, while others start."""
    log = f"--output={tmp_path}/job.log"
    job = cluster.submit(
        SCRIPTS / "generate.sbatch", *LONG, "--steps", "none", "--output-dir", str(tmp_path),
        options=[*NODES, log], variables=VARIABLES, folder=ROOT,
    )  # fmt: skip
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "1:0")
    assert "--steps" in (tmp_path / "job.log").read_text()


def test_a_daemon_that_is_killed(
    cluster: Cluster, undisturbed: torch.Tensor, tmp_path: Path
) -> None:
    """A node's slurmd may die and come back: its job goes on meanwhile."""
    job = submitted(cluster, tmp_path, NODES)
    wait_for(first_step, cluster, tmp_path)
    cluster.kill_daemon("n10")
    cluster.start_daemon("n10")
    check(cluster, job, tmp_path, undisturbed, restarts=0)
