"""Videos made on a real Slurm of two nodes: the same as those of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.support.launched import ROOT, python

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SCRIPTS = ROOT / "launch" / "slurm"
VIDEO = ["--prompt", "a red circle", "--num-frames", "97", "--steps", "16", "--lvsa",
         "--rotate-keyframes", "--keep-latents", "--output-name", "one"]  # fmt: skip
VARIABLES = {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
GPUS = ["--gpus-per-node=2", "--cpus-per-task=2"]


def latents(folder: Path, name: str = "one") -> torch.Tensor:
    found: torch.Tensor = load_file(folder / f"{name}.latents.safetensors")["0.latents"]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Latents of the video as one process makes it."""
    folder = tmp_path_factory.mktemp("alone")
    done = python([*VIDEO, "--output-dir", str(folder)])
    assert done.returncode == 0, done.stderr
    return latents(folder)


def check(folder: Path, alone: torch.Tensor, ranks: int = 4) -> None:
    torch.testing.assert_close(latents(folder), alone, rtol=1e-5, atol=1e-5)
    record = json.loads((folder / "one.json").read_text())
    assert len(record["ranks"]) == ranks and (folder / "one.mp4").exists()


def test_two_nodes_make_the_video_of_one_process(
    cluster: Cluster, alone: torch.Tensor, tmp_path: Path
) -> None:
    log = tmp_path / "job.log"
    job = cluster.submit(
        SCRIPTS / "generate.sbatch", *VIDEO, "--output-dir", str(tmp_path),
        options=["--nodes=2", *GPUS, f"--output={log}"], variables=VARIABLES, folder=ROOT,
    )  # fmt: skip
    assert cluster.wait(job)["JobState"] == "COMPLETED", log.read_text()
    check(tmp_path, alone)


def test_srun_without_torchrun(cluster: Cluster, alone: torch.Tensor, tmp_path: Path) -> None:
    """srun sets numbers of its own, and says nothing of where the first process listens."""
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1",
         "--kill-on-bad-exit=1", sys.executable, str(ROOT / "launch" / "generate.py"),
         *VIDEO, "--output-dir", str(tmp_path)],
        env=cluster.environment | VARIABLES, cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(tmp_path, alone)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_cannot_work_fails(cluster: Cluster, tmp_path: Path, nodes: int) -> None:
    log = tmp_path / "job.log"
    job = cluster.submit(
        SCRIPTS / "generate.sbatch", "--prompt", "x", "--num-frames", "98",
        "--output-dir", str(tmp_path),
        options=[f"--nodes={nodes}", *GPUS, f"--output={log}"], variables=VARIABLES, folder=ROOT,
    )  # fmt: skip
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    assert ended["ExitCode"] != "0:0"
    assert "98" in log.read_text() and not list(tmp_path.glob("*.mp4"))


def test_a_list_whose_task_was_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """Six videos in three tasks; one task is cancelled, and submitted again."""
    prompts = tmp_path / "list.txt"
    prompts.write_text("".join(f"a {color} circle\n" for color in ["red", "green", "blue"]))
    out = tmp_path / "out"
    arguments = ["--prompts", str(prompts), "--seeds", "0", "1", "--num-frames", "33",
                 "--steps", "4", "--lvsa", "--output-dir", str(out)]  # fmt: skip
    options = ["--gpus-per-node=1", "--cpus-per-task=2", f"--output={tmp_path}/%a.log"]
    job = cluster.submit(
        SCRIPTS / "list.sbatch", *arguments,
        options=[*options, "--array=0-2"], variables=VARIABLES, folder=ROOT,
    )  # fmt: skip
    cluster.wait(f"{job}_1", {"RUNNING"})
    cluster.run("scancel", f"{job}_1")
    states = [cluster.wait(f"{job}_{task}")["JobState"] for task in range(3)]
    assert states == ["COMPLETED", "CANCELLED", "COMPLETED"]
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert len(made) == 4
    again = cluster.submit(
        SCRIPTS / "list.sbatch", *arguments,
        options=[*options, "--array=1"], variables={**VARIABLES, "TASKS": "3"}, folder=ROOT,
    )  # fmt: skip
    assert cluster.wait(f"{again}_1")["JobState"] == "COMPLETED"
    names = [path.stem for path in out.glob("*.mp4")]
    assert len(names) == 6 and {(out / f"{name}.json").exists() for name in names} == {True}
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
