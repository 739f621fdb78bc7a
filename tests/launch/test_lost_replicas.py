"""A replica that dies: who judges it, who ends, and what becomes of the request that it had."""

import json

import pytest

from lvsa.launch.processes.replicas import Replicas
from lvsa.launch.processes.verdict import GRACE, SHORTEST, USER_ERROR, Fault, Table
from lvsa.studies.reliability.faults import Fault as Planted
from lvsa.studies.reliability.job import run
from tests.support.errors import names
from tests.support.guarded import guarded

TIMEOUT = 10.0


def at(step, waits=False):
    return {"video": 1, "phase": "denoising", "step": step, "steps": 9, "count": 0, "waits": waits}


@pytest.fixture
def table():
    """Four ranks, heard from at 0 in their third step."""
    table = Table(range(4), 4, 0.0, TIMEOUT)
    for rank in range(4):
        table.hello(rank, f"node{rank}", f"/log/{rank}", 0.0)
        table.beat(rank, at(2), 0.0)
    return table


def parted(table, outlive=True):
    replicas = Replicas(table)
    replicas.part(2, outlive)
    return replicas


def test_a_dead_rank_takes_its_replica_along_and_no_other(table):
    replicas = parted(table)
    table.report(3, Fault.DIED, "", 1.0)
    verdict = replicas.verdict(1.0)
    assert (verdict.rank, verdict.replica, list(replicas.ranks(1))) == (3, 1, [2, 3])
    assert all(names(verdict.message, word) for word in ("rank 3", "node3", "replica 1"))
    assert replicas.verdict(2.0) is None, "it is told once"
    # Those of the others that are left are not called lost before all are gone.
    assert replicas.gone({3}) == [] and replicas.gone({2, 3}) == [1]
    assert replicas.gone({2, 3}) == []
    for rank in (0, 1):
        assert not replicas.finished
        table.finish(rank)
    assert replicas.finished


def test_all_end_with_the_first_replica_or_where_the_launcher_ends_all(table):
    table.report(1, Fault.DIED, "", 1.0)
    assert parted(table).verdict(1.0).replica is None
    table.rows[1].fault = None
    table.report(3, Fault.DIED, "", 1.0)
    assert parted(table, outlive=False).verdict(1.0).replica is None
    assert Replicas(table).verdict(1.0).replica is None, "before they are parted"


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.INCOMPLETE])
def test_what_all_find_ends_all(table, fault):
    table.report(2, fault, "as all tell it", 1.0)
    verdict = parted(table).verdict(1.0 + GRACE[fault])
    assert verdict.replica is None and verdict.message == "as all tell it"
    assert (verdict.code == USER_ERROR) == (fault is Fault.REFUSED)


def test_a_replica_that_goes_on_hides_none_that_hangs(table):
    replicas = parted(table)
    for now in range(1, 13):
        for rank in range(4):
            table.beat(rank, at(2 + now if rank < 2 else 2, waits=rank == 3), float(now))
        verdict = replicas.verdict(float(now))
        assert (verdict is not None) == (now > TIMEOUT + 1), now
        if verdict is not None:
            assert (verdict.rank, verdict.replica) == (2, 1)


def test_a_replica_of_one_rank_that_is_stopped_is_lost():
    table = Table(range(2), 2, 0.0, SHORTEST)
    for rank in range(2):
        table.hello(rank, "node", "/log", 0.0)
    replicas = parted(table)
    table.beat(0, at(3), 5.0)
    assert replicas.verdict(5.0).replica == 1


PART = "watch.part(2); time.sleep(1)\n"
DIE = "time.sleep(2); die(9)"
WAIT = "time.sleep(100)"
SEES = """while not watch.lost:
    time.sleep(0.05)
print(sorted(watch.lost), file=sys.stderr)
"""


def test_the_guards_end_one_replica_and_tell_the_others(tmp_path):
    """As mpirun and srun start processes, or nobody in particular."""
    job = guarded(tmp_path, PART + SEES, SEES, WAIT, DIE)
    ended = job.end()
    assert [rank.code for rank in ended] == [0, 0, 1, -9]
    first, second, *others = (rank.said for rank in ended)
    assert names(first, "rank 3") and names(first, "replica 1") and "[1]" in first
    assert second == "[1]\n" and others == ["", ""]
    # The log of the rank that died, and no other.
    assert [name[:12] for name in job.logs] == ["lvsa-rank-3-"]


@pytest.mark.parametrize(("victim", "environment"), [(1, {}), (3, {"TORCHELASTIC_RUN_ID": "test"})])
def test_the_guards_end_all(victim, environment, tmp_path):
    """With a rank of the first replica, whose store is the job's; and under torchrun."""
    work = [PART + WAIT, WAIT, WAIT, WAIT]
    work[victim] = DIE
    ended = guarded(tmp_path, *work, **environment).end()
    assert [rank.code for rank in ended] == [-9 if rank == victim else 1 for rank in range(4)]


SMALL = ["--prompt", "a red circle", "--num-frames", "33", "--steps", "4", "--guidance", "1",
         "--lvsa", "--device", "cpu", "--checkpoint-seconds", "0"]  # fmt: skip


def test_a_killed_replica_gives_its_request_back(tmp_path):
    """The real launcher, started by nobody in particular; rank 2 is killed in its first video."""
    lists = ["--seeds", "0", "1", "2", "3", "--replicas", "2"]
    outcome = run(tmp_path, 4, [*SMALL, *lists], Planted("denoising", 2, "SIGKILL"))
    assert outcome.struck and outcome.codes == (0, 0, -9, 1), outcome.said
    assert names(outcome.said, "rank 2") and names(outcome.said, "replica 1")
    made = [f"clip-{seed}" for seed in range(4)]
    files = [f"{name}{suffix}" for name in made for suffix in (".json", ".mp4")]
    assert outcome.files == (*files, "index.html"), "nothing half"
    records = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in made]
    assert {record["sequence"]["replica"] for record in records} == {0}
    assert sorted(record["first_step"] > 0 for record in records) == [False] * 3 + [True]
    assert "4 videos" in (tmp_path / "out" / "index.html").read_text()
