"""This process among others: what torchrun, mpirun and srun set, and what says too little."""

import pytest

from lvsa.errors import LVSAError
from lvsa.launch.processes.environment import Place, place_of, rank_of
from tests.support.errors import refuses

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node7",
            "MASTER_PORT": "4711"}  # fmt: skip
SRUN = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3",
        "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NNODES": "1",
        "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
          "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip
MPIEXEC = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1",
           "MPI_LOCALNRANKS": "2"}  # fmt: skip


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


def test_alone():
    assert place_of({"PATH": "/bin"}) == Place()
    assert Place().first and Place().world == 1


def test_torchrun():
    assert place_of(TORCHRUN) == Place(9, 16, 1, "node7", 4711)
    assert place_of({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == Place()
    assert place_of(TORCHRUN).as_environment() == TORCHRUN


@pytest.mark.parametrize(
    ("environment", "numbers"), [(SRUN, (3, 4, 3)), (MPIRUN, (1, 2, 1)), (MPIEXEC, (1, 2, 1))]
)
def test_other_launchers_on_one_node(environment, numbers):
    place = place_of(environment)
    assert (place.rank, place.world, place.local_rank, place.address) == (*numbers, "127.0.0.1")
    given = place_of({**environment, "MASTER_ADDR": "node7", "MASTER_PORT": "4711"})
    assert given == Place(*numbers, "node7", 4711)
    # What PyTorch reads is what torchrun would have set.
    assert place_of({**environment, **place.as_environment()}) == place


def test_jobs_that_share_a_node_listen_on_ports_of_their_own():
    ports = {place_of({**SRUN, "SLURM_JOB_ID": str(job)}).port for job in range(8)}
    assert len(ports) > 4
    assert {place_of({**SRUN, "SLURM_PROCID": str(rank)}).port for rank in range(4)} <= ports | {
        place_of(SRUN).port
    }


def test_torchrun_under_srun_and_mpirun_under_slurm():
    assert place_of({**SRUN, **TORCHRUN}) == place_of(TORCHRUN)
    assert place_of({**SRUN, **MPIRUN}) == place_of(MPIRUN)


def test_one_task_of_slurm_is_alone():
    assert place_of({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Place()
    script = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert place_of(script) == Place()
    assert place_of({**script, "SLURM_NTASKS": "1"}) == Place()


TOO_LITTLE = {
    "world without rank": ({"WORLD_SIZE": "2"}, ["WORLD_SIZE", "RANK"]),
    "local rank without rank": ({"LOCAL_RANK": "0"}, ["LOCAL_RANK", "RANK"]),
    "rank without world": ({"RANK": "0"}, ["RANK", "WORLD_SIZE"]),
    "a rank that is none": ({**TORCHRUN, "RANK": "x"}, ["RANK", "x"]),
    "an empty rank": ({**TORCHRUN, "RANK": ""}, ["RANK"]),
    "a negative rank": ({**TORCHRUN, "RANK": "-1"}, ["RANK", -1]),
    "a world that is none": ({**TORCHRUN, "WORLD_SIZE": "two"}, ["WORLD_SIZE", "two"]),
    "no address": (without(TORCHRUN, "MASTER_ADDR"), ["MASTER_ADDR"]),
    "no port": (without(TORCHRUN, "MASTER_PORT"), ["MASTER_PORT"]),
    "no local rank": (without(TORCHRUN, "LOCAL_RANK"), ["LOCAL_RANK"]),
    "srun on nodes": ({**SRUN, "SLURM_STEP_NUM_NODES": "2"}, ["srun", 4, "MASTER_ADDR"]),
    "srun unsaid": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, ["SLURM_PROCID"]),
    "srun unsaid, second": ({"SLURM_PROCID": "1"}, ["SLURM_PROCID", "1"]),
    "a batch script of many tasks": (
        {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, ["SLURM_PROCID"],
    ),
    "mpirun on nodes": ({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ["mpirun", 2]),
    "mpirun unsaid": ({"OMPI_COMM_WORLD_RANK": "0"}, ["OMPI_COMM_WORLD_SIZE"]),
    "mpiexec unsaid": (without(MPIEXEC, "MPI_LOCALRANKID"), ["MPI_LOCALRANKID"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_what_says_too_little_is_refused_and_torchrun_named(case):
    environment, named = TOO_LITTLE[case]
    with refuses(LVSAError, "torchrun", *named):
        place_of(environment)


def test_numbers_that_contradict_one_another():
    with refuses(LVSAError, "RANK", 16, 15):
        place_of({**TORCHRUN, "RANK": "16"})
    for port in ("x", "0", "65536"):
        with refuses(LVSAError, "MASTER_PORT", port, 65535):
            place_of({**TORCHRUN, "MASTER_PORT": port})


def test_the_rank_for_messages_is_told_without_an_error():
    assert rank_of(TORCHRUN) == 9 and rank_of(SRUN) == 3 and rank_of({}) == 0
    assert rank_of({"RANK": "x"}) == 0


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts a script in the place of Slurm's scontrol; tests/slurm asks the real one."""

    def install(text):
        path = tmp_path / "scontrol"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


ON_NODES = {**SRUN, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[9-10]"}


def test_srun_on_several_nodes(scontrol):
    scontrol('case "$2 $3" in "hostnames n[9-10]") printf "n9\\nn10\\n";; '
             '"node n9") echo "NodeName=n9 NodeAddr=10.0.0.9 NodeHostName=n9";; esac')  # fmt: skip
    assert place_of(ON_NODES).address == "10.0.0.9"
    assert place_of({**ON_NODES, "MASTER_ADDR": "node7"}).address == "node7"


def test_srun_on_several_nodes_without_addresses(scontrol):
    scontrol('[ "$2" = hostnames ] && printf "n9\\nn10\\n"')
    assert place_of(ON_NODES).address == "n9"
    scontrol("exit 1")
    with refuses(LVSAError, "srun", 4, "MASTER_ADDR"):
        place_of(ON_NODES)
