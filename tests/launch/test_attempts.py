"""Attempts: every rank comes to know of a failure, or the job ends."""

from datetime import timedelta

import pytest
import torch

from lvsa.errors import CommunicationError, NonFiniteError
from lvsa.launch.processes import attempts
from lvsa.launch.processes.attempts import attempt
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.reporting import SomeFailed, run_reporting
from tests.support.errors import refuses
from tests.support.launched import runtime_of
from tests.support.ranks import run_ranks


def failing(ranks, rank, error):
    def work():
        if rank in ranks:
            raise error

    return work


def attempted(rank, world):
    runtime = runtime_of(rank, world)
    told = [
        attempt(runtime, "none", failing((), rank, OSError())),
        attempt(runtime, "all", failing(range(world), rank, NonFiniteError("no numbers"))),
        attempt(runtime, "own", failing((1, 2), rank, torch.OutOfMemoryError(f"{rank} GiB"))),
        attempt(runtime, "first", failing((0,), rank, OSError(28, "disk full"))),
        attempt(runtime, "wordless", failing((0,), rank, MemoryError())),
    ]
    # The ranks are still in step.
    assert runtime.from_first(rank) == 0
    return told


def test_all_ranks_know_what_failed_where():
    expected = [None, "no numbers", "rank 1: 1 GiB\nrank 2: 2 GiB", "[Errno 28] disk full",
                "MemoryError"]  # fmt: skip
    assert run_ranks(3, attempted) == [expected] * 3
    assert attempted(0, 1)[:2] == expected[:2]


def left_alone(rank, world):
    attempts.PATIENCE = timedelta(seconds=1)
    if rank == 1:
        with refuses(CommunicationError, "rank 1", "the third video", "no room"):
            attempt(runtime_of(1, 2), "the third video", failing((1,), 1, MemoryError("no room")))


def test_a_rank_that_fails_while_others_wait_for_it_ends_the_job():
    run_ranks(2, left_alone)


@pytest.mark.parametrize("error", [TypeError("a fault"), CommunicationError("lost")])
def test_faults_of_the_code_and_lost_ranks_are_no_failures_of_a_request(error):
    with refuses(type(error), str(error)):
        attempt(runtime_of(0, 1), "a", failing((0,), 0, error))


def test_a_list_with_failures_ends_with_exit_code_1(caplog):
    def work(place):
        assert place == Place()
        raise SomeFailed("2 of 6")

    assert run_reporting(work) == 1
