"""Which rank a job ends by: the rules, on a clock of the tests' own."""

import pytest

from lvsa.launch.processes.verdict import (
    ALONE_LIMIT,
    ARRIVAL,
    FAILURE,
    GRACE,
    USER_ERROR,
    Fault,
    Table,
)
from tests.support.errors import names

TIMEOUT = 10.0


def at(phase, step=None, count=0, video=1, waits=False):
    return {"video": video, "phase": phase, "step": step, "steps": 50, "count": count,
            "waits": waits}  # fmt: skip


@pytest.fixture
def table():
    """Three ranks on hosts of their own, heard from at 0 in their third step."""
    table = Table(range(3), 3, 0.0, TIMEOUT)
    for rank in range(3):
        table.hello(rank, f"node{rank}", f"/log/{rank}", 0.0)
        table.beat(rank, at("denoising", 2), 0.0)
    return table


def check(verdict, rank, *words, code=FAILURE):
    assert verdict is not None and verdict.rank == rank and verdict.code == code
    for word in words:
        assert names(verdict.message, word), verdict.message


def hear(table, now, **beats):
    for rank in range(3):
        table.beat(rank, beats.get(f"r{rank}", table.rows[rank].beat), now)


def test_nothing_is_said_while_all_is_well(table):
    for now in range(100):
        hear(table, now, **{f"r{rank}": at("denoising", 2, now) for rank in range(3)})
        assert table.verdict(now) is None


@pytest.mark.parametrize("fault", [Fault.DIED, Fault.FAILED])
def test_a_death_or_an_error_counts_at_once(table, fault):
    table.report(1, fault, "KeyError: 'x'", 5.0)
    check(table.verdict(5.0), 1, "node1", "step 3 of 50", "denoising", "KeyError: 'x'", "/log/1")


def test_a_users_mistake_is_told_as_it_is(table):
    table.report(2, Fault.REFUSED, "--seed is -1", 5.0)
    verdict = table.verdict(5.0 + GRACE[Fault.REFUSED])
    check(verdict, 2, code=USER_ERROR)
    assert verdict.message == "--seed is -1" and verdict.log is None


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.INCOMPLETE])
def test_what_all_find_the_first_rank_tells(table, fault):
    for rank in (2, 1, 0):
        table.report(rank, fault, f"as rank {rank} tells it", 5.0 - rank)
    verdict = table.verdict(6.0)
    assert verdict.message == "as rank 0 tells it"
    assert verdict.code == (USER_ERROR if fault is Fault.REFUSED else FAILURE)


@pytest.mark.parametrize("late", [Fault.CUT, Fault.LOST, Fault.SIGNAL])
def test_what_may_be_a_consequence_waits_for_its_cause(table, late):
    table.report(0, late, "closed", 5.0)
    hear(table, 5.0)
    assert table.verdict(5.0) is None
    alone = table.verdict(5.0 + GRACE[late])
    check(alone, 0, "node0", "closed")
    table.report(1, Fault.DIED, "", 5.1)
    check(table.verdict(5.2), 1, "node1")


def test_a_signal_leaves_no_log_behind(table):
    table.report(1, Fault.SIGNAL, "SIGTERM", 0.0)
    assert table.verdict(GRACE[Fault.SIGNAL]).log is None


def test_the_first_word_of_a_rank_counts(table):
    table.report(1, Fault.FAILED, "first", 5.0)
    table.report(1, Fault.DIED, "second", 6.0)
    check(table.verdict(6.0), 1, "first")


def test_a_silent_rank_is_named_and_not_those_that_wait(table):
    for now in (3.0, 9.0, TIMEOUT):
        for rank in (0, 2):
            table.beat(rank, at("denoising", 3), now)
    assert table.verdict(TIMEOUT) is None
    check(table.verdict(TIMEOUT + 0.5), 1, "node1", "step 3 of 50", f"--timeout {TIMEOUT:g}")


def test_a_rank_that_never_came_is_named():
    """A node that starts slowly is given its time, also where --timeout is short."""
    table = Table(range(2), 2, 0.0, TIMEOUT)
    table.hello(0, "node0", "/log/0", 0.0)
    table.beat(0, at("planning"), ARRIVAL)
    assert table.verdict(ARRIVAL) is None
    table.beat(0, at("planning"), ARRIVAL + 1)
    check(table.verdict(ARRIVAL + 1), 1, "rank 1 of 2")


def test_the_rank_that_is_behind_is_named(table):
    """It lives, but does not go on: the others are a step, or an attention call, further."""
    for ahead in (at("denoising", 3), at("denoising", 2, count=1)):
        hear(table, 1.0, r0=ahead, r2=ahead)
        hear(table, TIMEOUT)
        assert table.verdict(TIMEOUT + 0.9) is None
        hear(table, TIMEOUT + 1.5)
        check(table.verdict(TIMEOUT + 1.5), 1, "node1", f"--timeout {TIMEOUT:g}")


def test_of_those_in_one_place_the_one_outside_a_collective_is_named(table):
    waits = at("denoising", 2, waits=True)
    hear(table, 0.0, r0=waits, r1=waits)
    hear(table, TIMEOUT + 1)
    verdict = table.verdict(TIMEOUT + 1)
    check(verdict, 2, "node2")
    assert "node0" not in verdict.message


def test_all_are_named_where_all_wait(table):
    hear(table, TIMEOUT + 1)
    check(table.verdict(TIMEOUT + 1), 0, "node0", "node1", "node2")


@pytest.mark.parametrize("phase", ["loading", "encoding", "decoding", "writing"])
def test_slow_honest_work_of_one_is_left_alone(table, phase):
    others = "waiting" if phase in ("decoding", "writing") else "denoising"
    waiting = at(others, None, waits=True)
    hear(table, 0.0, r0=at(phase), r1=waiting, r2=waiting)
    hear(table, ALONE_LIMIT - 1)
    assert table.verdict(ALONE_LIMIT - 1) is None
    hear(table, ALONE_LIMIT + 1)
    check(table.verdict(ALONE_LIMIT + 1), 0, "node0", phase)


def test_the_next_video_does_not_put_the_first_rank_ahead(table):
    """Others wait in the next one while the first rank decodes this."""
    hear(table, 0.0, r0=at("decoding"), r1=at("encoding", video=2), r2=at("encoding", video=2))
    hear(table, ALONE_LIMIT + 1)
    check(table.verdict(ALONE_LIMIT + 1), 0, "node0", "decoding")


def test_a_suspended_job_is_nobodys_fault(table):
    table.paused(1000.0)
    assert table.verdict(1000.0 + TIMEOUT) is None


def test_one_process_is_never_too_slow():
    table = Table([0], 1, 0.0, TIMEOUT)
    table.hello(0, "node0", "/log/0", 0.0)
    assert table.verdict(10 * ALONE_LIMIT) is None


def test_finished_when_all_are(table):
    for rank in range(3):
        assert not table.finished
        table.finish(rank)
    assert table.finished
