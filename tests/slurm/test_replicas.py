"""Replicas under srun, which lets the other nodes live when one is lost, if it is asked to."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_generate import VARIABLES
from tests.support.launched import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

LIST = ["--prompt", "a red circle", "--seeds", "0", "1", "2", "3", "--output-name", "clip",
        "--num-frames", "97", "--steps", "16", "--lvsa", "--rotate-keyframes",
        "--checkpoint-seconds", "0", "--replicas", "2"]  # fmt: skip


def test_a_lost_node_gives_its_request_back(cluster: Cluster, tmp_path: Path) -> None:
    """A replica on each of two nodes, one of which loses all processes in its first video."""
    job = subprocess.Popen(
        ["srun", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1",
         "--kill-on-bad-exit=0", sys.executable, str(ROOT / "launch" / "generate.py"),
         *LIST, "--output-dir", str(tmp_path)],
        env=cluster.environment | VARIABLES, cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 180
    while len(list(tmp_path.glob(".checkpoints/*/state.safetensors"))) < 2:
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.1)
    cluster.kill_processes("n10")
    _, said = job.communicate(timeout=300)
    assert "replica 1" in said and job.returncode != 0, said
    records = [json.loads((tmp_path / f"clip-{seed}.json").read_text()) for seed in range(4)]
    assert {record["sequence"]["replica"] for record in records} == {0}, said
    assert [record["first_step"] > 0 for record in records].count(True) == 1
    assert all((tmp_path / f"clip-{seed}.mp4").exists() for seed in range(4))
    assert "4 videos" in (tmp_path / "index.html").read_text()
