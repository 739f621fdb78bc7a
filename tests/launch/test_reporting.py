"""Mistakes: one message, always seen, and exit code 2 as far as a launcher passes it on."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.support.launched import ROOT, python, torchrun

WRONG = ["--num-frames", "44", "--prompt", "x"]
MESSAGE = "44 frames are not 4k + 1"

LATE = """
import os, sys, time
from pathlib import Path
from lvsa.launch.generate import main
from lvsa.launch.processes import reporting

folder, rank = Path(__file__).parent, os.environ["RANK"]
sleep, report = time.sleep, reporting._report

def waited(seconds):
    if seconds == reporting.PATIENCE:
        (folder / rank).touch()
    sleep(seconds)

def reported(*error):
    while rank == "0" and not ((folder / "1").exists() and (folder / "2").exists()):
        sleep(0.1)
    report(*error)

time.sleep, reporting._report = waited, reported
main(sys.argv[1:])
"""


# Half a minute is much for a test.
IMPATIENT = """
import sys
from lvsa.launch.generate import main
from lvsa.launch.processes import reporting

reporting.PATIENCE = 2.0
main(sys.argv[1:])
"""


@pytest.fixture
def late(tmp_path):
    """The launcher, whose first rank speaks when all others wait for it to do so."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    return str(script)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seed", "-1"], "--seed is -1"), (["--heigth", "3"], "--heigth"), (WRONG, MESSAGE)],
)
def test_the_message_is_seen_and_last_although_the_first_rank_is_late(late, arguments, message):
    done = torchrun(3, arguments, script=late)
    assert done.returncode == 1, "torchrun knows no other"
    # Once when it happens, and once more in torchrun's last words.
    assert done.stderr.count(message) == 2, done.stderr
    assert "exitcode  : 2" in done.stderr
    last = done.stderr[done.stderr.index("Root Cause") :]
    assert message in last and len(last.splitlines()) < 25
    assert "[1]:" not in done.stderr and "[2]:" not in done.stderr, "other ranks add nothing"
    assert 'generate.py", line' not in done.stderr and "Traceback" not in last


def test_a_mistake_leaves_nothing_half_done(tmp_path):
    done = python([*WRONG, "--output-dir", str(tmp_path / "out")])
    assert done.returncode == 2
    assert done.stderr.count(MESSAGE) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--timeout", "inf"], ["--seed", str(2**64)], ["--guidance", "nan"], ["--num-frames", "1e9"],
     ["--num-frames", "1000000000"], ["--ranks", "1000000", "--dry-run"], ["--prompt", "a\udce9"]],
)  # fmt: skip
def test_mistakes_end_with_exit_code_2_and_no_traceback(arguments):
    done = subprocess.run(
        [sys.executable, "launch/generate.py", *map(os.fsencode, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert arguments[0] in done.stderr and "Traceback" not in done.stderr


def together(arguments, environments):
    """Processes that something else than torchrun started, all at once."""
    running = [
        subprocess.Popen(
            [sys.executable, "launch/generate.py", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        for environment in environments
    ]  # fmt: skip
    return [(*process.communicate(timeout=240), process.returncode) for process in running]


def test_processes_of_mpirun_make_one_video_together(tmp_path):
    environments = [
        {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2",
         "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
         "PMIX_NAMESPACE": f"test.{os.getpid()}"}
        for rank in range(2)
    ]  # fmt: skip
    arguments = ["--prompt", "a red circle", "--num-frames", "9", "--steps", "2",
                 "--output-dir", str(tmp_path), "--output-name", "clip"]  # fmt: skip
    (_, first, code), (_, second, other) = together(arguments, environments)
    assert (code, other) == (0, 0), first + second
    assert "shards     2 rank(s)" in first and "wrote" not in second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]


@pytest.mark.parametrize(
    "environment",
    [{"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, {"OMPI_COMM_WORLD_RANK": "1"},
     {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}],
)  # fmt: skip
def test_processes_that_cannot_find_one_another_name_torchrun(environment, tmp_path):
    started = time.monotonic()
    ((_, stderr, code),) = together(["--output-dir", str(tmp_path)], [environment])
    assert code == 2 and "torchrun" in stderr and next(iter(environment)) in stderr
    assert time.monotonic() - started < 30
    assert not list(tmp_path.iterdir())


def test_a_rank_that_is_left_alone_speaks_for_itself(tmp_path):
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": "29999"}  # fmt: skip
    done = python(["--seed", "-1"], str(script), **environment)
    assert done.returncode == 2
    assert re.search(r"\[rank 1\] ERROR: .*--seed is -1", done.stderr)
