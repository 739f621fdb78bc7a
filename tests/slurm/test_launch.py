"""How the batch scripts start processes: numbers, nodes, ports, arguments.

The scripts run on a real Slurm, from a folder in which launch/generate.py is one that writes down
how it was started.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "launch" / "slurm"
PROMPT = "a \"red\" 'circle' $(touch ran) `touch ran`\n& ${HOME} \\ *"
PROBE = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
facts = {name: os.environ.get(name) for name in names} | {"arguments": sys.argv[1:]}
job = os.environ["SLURM_JOB_ID"]
with open(f"{job}-{facts['RANK']}.json", "w") as file:
    json.dump(facts, file)
if "--fail" in sys.argv and facts["RANK"] == "1":
    sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository whose launcher writes down how it was started."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "slurm").symlink_to(SCRIPTS)
    (tmp_path / "launch" / "generate.py").write_text(PROBE)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


def started(cluster: Cluster, folder: Path, *arguments: str, options: list[str]) -> str:
    log = f"--output={folder}/job.log"
    base = ["--gpus-per-node=0", "--cpus-per-task=1", log]
    script = SCRIPTS / "generate.sbatch"
    return cluster.submit(script, *arguments, options=base + options, folder=folder)


def ranks(folder: Path, job: str) -> list[dict[str, str]]:
    facts = [json.loads(path.read_text()) for path in folder.glob(f"{job}-*.json")]
    return sorted(facts, key=lambda each: int(each["RANK"]))


def test_two_nodes_of_two_gpus(cluster: Cluster, folder: Path) -> None:
    options = ["--nodes=2", "--gpus-per-node=2"]
    job = started(cluster, folder, "--prompt", PROMPT, "--lvsa", options=options)
    assert cluster.wait(job)["ExitCode"] == "0:0", (folder / "job.log").read_text()
    found = ranks(folder, job)
    assert [each["RANK"] for each in found] == ["0", "1", "2", "3"]
    assert {each["WORLD_SIZE"] for each in found} == {"4"}
    # Rank 0 is on the node that all meet at, though n10 sorts before n9.
    assert [each["SLURMD_NODENAME"] for each in found] == ["n9", "n9", "n10", "n10"]
    assert {each["MASTER_ADDR"] for each in found} == {cluster.address("n9")}
    assert all(each["arguments"] == ["--prompt", PROMPT, "--lvsa"] for each in found)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("options", "variables", "processes"),
    [
        (["--gres=gpu:1"], {}, 1),
        (["--gres=gpu:2", "--ntasks-per-node=2"], {}, 2),
        (["--ntasks-per-node=2"], {}, 2),
        ([], {}, 1),
        (["--gpus-per-node=2"], {"NPROC_PER_NODE": "1"}, 1),
    ],
)
def test_processes_of_a_node(
    cluster: Cluster,
    folder: Path,
    options: list[str],
    variables: dict[str, str],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    job = started(cluster, folder, options=options)
    assert cluster.wait(job)["JobState"] == "COMPLETED", (folder / "job.log").read_text()
    assert len(ranks(folder, job)) == processes


def test_jobs_on_one_node_meet_at_ports_of_their_own(cluster: Cluster, folder: Path) -> None:
    options = ["--nodelist=n9", "--gpus-per-node=1"]
    jobs = [started(cluster, folder, options=options) for _ in range(2)]
    assert {cluster.wait(job)["JobState"] for job in jobs} == {"COMPLETED"}
    ports = {ranks(folder, job)[0]["MASTER_PORT"] for job in jobs}
    assert len(ports) == 2


def test_a_failing_rank_fails_the_job(cluster: Cluster, folder: Path) -> None:
    job = started(cluster, folder, "--fail", options=["--gpus-per-node=2"])
    ended = cluster.wait(job)
    assert ended["JobState"] == "FAILED"
    assert ended["ExitCode"] != "0:0"


def test_a_list_is_shared_by_tasks(cluster: Cluster, folder: Path) -> None:
    script, options = SCRIPTS / "list.sbatch", ["--gpus-per-node=1", "--cpus-per-task=1"]
    log = f"--output={folder}/job-%a.log"
    job = cluster.submit(
        script, "--prompts", "list.txt", options=[*options, log, "--array=0-1"], folder=folder
    )
    for task in (0, 1):
        ended = cluster.wait(f"{job}_{task}")
        assert ended["JobState"] == "COMPLETED", (folder / f"job-{task}.log").read_text()
        (facts,) = ranks(folder, ended["JobId"])
        assert facts["arguments"] == ["--share", f"{task}/2", "--prompts", "list.txt"]


def test_one_task_alone_needs_the_number_of_tasks(cluster: Cluster, folder: Path) -> None:
    script, options = SCRIPTS / "list.sbatch", ["--gpus-per-node=1", "--cpus-per-task=1"]
    options = [*options, f"--output={folder}/job.log", "--array=3"]
    job = cluster.submit(script, options=options, folder=folder)
    ended = cluster.wait(f"{job}_3")
    assert ended["ExitCode"] == "2:0"
    assert "TASKS" in (folder / "job.log").read_text()
    again = cluster.submit(script, options=options, folder=folder, variables={"TASKS": "6"})
    ended = cluster.wait(f"{again}_3")
    (facts,) = ranks(folder, ended["JobId"])
    assert facts["arguments"] == ["--share", "3/6"]
