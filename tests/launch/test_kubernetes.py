"""The Kubernetes manifest: what it says is consistent, and its command makes a video."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
SERVICE, JOB = yaml.safe_load_all((ROOT / "launch/kubernetes/generate.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def option(name: str) -> str:
    (value,) = (text.partition("=")[2] for text in CONTAINER["args"] if text.startswith(name + "="))
    return value


def test_pods_are_the_nodes():
    assert JOB["spec"]["completionMode"] == "Indexed"
    nodes = int(option("--nnodes"))
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] == nodes
    assert option("--nproc_per_node") == str(CONTAINER["resources"]["limits"]["nvidia.com/gpu"])
    # Pods of an Indexed Job are called NAME-INDEX, in the domain of the headless service.
    assert option("--master_addr") == f"{JOB['metadata']['name']}-0.{POD['subdomain']}"
    assert SERVICE["metadata"]["name"] == POD["subdomain"]
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes


@pytest.mark.timeout(300)
def test_its_command_makes_a_video(tmp_path):
    """Two pods on this host, of one process each, with the model that comes along."""
    (port,) = free_ports(1)
    here = {
        "--nproc_per_node": "1",
        "--master_addr": "127.0.0.1",
        "--master_port": str(port),
        "--model": "tiny-wan",
        "--num-frames": "33",
        "--output-dir": str(tmp_path),
    }
    pods = []
    for index in range(int(option("--nnodes"))):
        arguments = []
        for text in CONTAINER["args"]:
            name, equals, value = text.partition("=")
            value = here.get(name, value).replace("$(JOB_COMPLETION_INDEX)", str(index))
            arguments.append(name + equals + value)
        program = Path(sys.executable).with_name(*CONTAINER["command"])
        pods.append(
            subprocess.Popen(
                [program, *arguments, "--steps=2"],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    told = [pod.communicate(timeout=240)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], "\n".join(told)
    assert len(list(tmp_path.glob("*.mp4"))) == 1
