"""Ranks and their guards as real processes: how each end of one ends the others."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.guarded import SCRIPT, guarded

LONG = "time.sleep(100)"


def test_no_rank_leaves_before_the_first_is_done(tmp_path):
    """However long that takes, by the measure of --timeout."""
    first, second = guarded(tmp_path, "time.sleep(6)", "", timeout=1).end()
    assert (first.code, second.code) == (0, 0) and first.said + second.said == ""
    assert second.seconds > 6
    assert guarded_logs_are_gone(tmp_path)


def guarded_logs_are_gone(folder):
    return not list((folder / "tmp").iterdir())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_ends_all(victim, tmp_path):
    job = guarded(tmp_path, *("die(9)" if rank == victim else LONG for rank in range(3)))
    ended = job.end()
    assert [rank.code for rank in ended] == [-9 if rank == victim else 1 for rank in range(3)]
    assert max(rank.seconds for rank in ended) < 10
    # One line for the node, and where the details are.
    assert re.match(rf"\nERROR: rank {victim} on \S+ .* in loading\ndetails: ", ended[0].said)
    assert ended[0].said.count("\n") == 3 and ended[1].said + ended[2].said == ""
    assert [name[:12] for name in job.logs] == [f"lvsa-rank-{victim}-"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_killed_after_the_timeout(victim, tmp_path):
    codes = ["die(signal.SIGSTOP)" if rank == victim else LONG for rank in range(2)]
    ended = guarded(tmp_path, *codes, timeout=4).end()
    assert [rank.code for rank in ended] == [-9 if rank == victim else 1 for rank in range(2)]
    assert 4 < max(rank.seconds for rank in ended) < 15
    assert re.match(rf"\nERROR: rank {victim} on \S+ .*\(--timeout 4\)", ended[0].said)


def test_a_failed_rank_says_why_in_one_line_and_leaves_its_traceback_in_the_log(tmp_path):
    job = guarded(tmp_path, LONG, "{}['planted']")
    first, second = job.end()
    assert (first.code, second.code) == (1, 1)
    blank, message, details = first.said.splitlines()
    assert not blank
    assert message.startswith("ERROR: rank 1 on ") and "in loading: KeyError: 'planted'" in message
    assert second.said == "" and "Traceback" not in first.said
    ((name, log),) = job.logs.items()
    assert name in details and "Traceback" in log and "KeyError: 'planted'" in log


def test_a_closed_connection_is_not_taken_for_the_cause(tmp_path):
    closed = "raise RuntimeError('[/gloo/transport/tcp/pair.cc:534] Connection closed by peer')"
    first, _ = guarded(tmp_path, f"time.sleep(0.5); {closed}", "time.sleep(1); {}['x']").end()
    assert "rank 1" in first.said and "gloo" not in first.said


def test_a_users_mistake_of_one_rank_ends_all_with_2(tmp_path):
    job = guarded(tmp_path, LONG, "raise LVSAError('44 frames')")
    first, second = job.end()
    assert (first.code, second.code) == (2, 2)
    assert first.said == "\nERROR: rank 1: 44 frames\n" and second.said == ""
    assert not job.logs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_one_line_also_where_python_cannot_act(number, tmp_path):
    job = guarded(tmp_path, "print(file=sys.stderr); deadlock()", LONG)
    assert job.processes[0].stderr.readline() == "\n"
    job.processes[0].send_signal(number)
    first, second = job.end()
    assert (first.code, second.code) == (128 + number, 1)
    assert re.fullmatch(rf"\nERROR: rank 0 on \S+ .* in loading: {number.name}\n", first.said)
    assert second.said == "" and not job.logs


def test_ignored_signals_stay_ignored(tmp_path):
    """As under nohup."""
    code = "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN; die(signal.SIGHUP)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = guarded(tmp_path, code)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [rank.code for rank in job.end()] == [0]


def test_a_rank_whose_guard_is_killed_ends(tmp_path):
    job = guarded(tmp_path, LONG, "time.sleep(1); watch._guard.kill(); time.sleep(100)")
    first, second = job.end()
    assert (first.code, second.code) == (1, 1)
    assert "rank 1" in first.said and "guard" in "".join(job.logs.values())


def test_files_of_a_killed_rank_are_removed(tmp_path):
    part = tmp_path / ".0123456789abcdef.part.mp4"
    job = guarded(tmp_path, f"held(Path({str(part)!r})).__enter__(); die(9)")
    assert [rank.code for rank in job.end()] == [-9]
    # The guard says so only after it has tidied up; its terminal is closed by then.
    assert not part.exists()


def test_what_libraries_write_to_descriptor_2_goes_into_the_log(tmp_path):
    code = "os.write(2, b'C++ frame #1'); print('a bar', file=sys.stderr)"
    (ended,) = guarded(tmp_path, code, LOGS="yes").end()
    assert ended.code == 0 and ended.said == "a bar\n"
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "C++ frame #1"


def test_strangers_on_the_guards_port_change_nothing(tmp_path):
    job = guarded(tmp_path, "time.sleep(2)", "")
    while not (tmp_path / "meeting").exists():
        time.sleep(0.01)
    port = int((tmp_path / "meeting").read_text().split(",")[0][1:])
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "x", "rank": 0, "fault": "died"}\n', b""):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    assert [rank.code for rank in job.end()] == [0, 0]


PARENT = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]])
"""


def test_ranks_end_with_their_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "script.py"), "0", "1", "30", str(tmp_path)],
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "test", "TMPDIR": str(tmp_path),
             "DO_0": "print('here', file=sys.stderr, flush=True); time.sleep(100)"},
    )  # fmt: skip
    assert parent.stderr.readline() == "here\n"
    parent.kill()
    # Nothing more comes only when the last of them is gone.
    _, said = parent.communicate(timeout=20)
    assert re.fullmatch(r"\nERROR: the job was ended in loading: SIGTERM.*killed\n", said)
