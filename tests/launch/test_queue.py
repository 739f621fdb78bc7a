"""The queue of requests: each is made once, whoever is slow, fails or is lost."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import distributed as dist

from lvsa.launch.requests.queue import Queue, Taken, Turn
from tests.support.errors import names

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def queues():
    """One queue as four replicas see it."""
    store = dist.HashStore()
    return [Queue(NAMES, store, replica) for replica in range(4)]


def rest(queue, lost=()):
    """Takes and ends requests until there is nothing to take."""
    taken = []
    while (turn := queue.take(lost)) is not None:
        taken.append(turn)
        queue.end(turn.name)
    return taken


def test_requests_are_taken_in_order_and_a_slow_replica_takes_fewer(queues):
    slow, fast, *_ = queues
    assert slow.take() == Turn("a")
    assert rest(fast) == [Turn("b"), Turn("c"), Turn("d")]
    assert fast.take() is None and not fast.over and fast.ended == 3
    slow.end("a")
    assert rest(slow) == [] and slow.over and fast.over and fast.ended == 4
    assert not fast.problems


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_each_is_taken_once_however_many_want_it(replicas):
    store, wanted = dist.HashStore(), [str(n) for n in range(100)]
    queues = [Queue(wanted, store, replica) for replica in range(replicas)]
    with ThreadPoolExecutor(replicas) as threads:
        taken = [turn.name for turns in threads.map(rest, queues) for turn in turns]
    assert Counter(taken) == Counter(wanted)
    assert all(queue.over and queue.ended == 100 for queue in queues)


def test_every_replica_knows_what_failed(queues):
    one, other, *_ = queues
    assert one.take() == Turn("a") and other.take() == Turn("b")
    other.end("b", "no memory")
    one.end("a")
    assert one.problems == other.problems == {"b": "no memory"}
    assert rest(one) == [Turn("c"), Turn("d")], "what failed is not tried again"


def test_what_a_lost_replica_was_making_is_taken_by_one_other(queues):
    first, lost, heir, late = queues
    assert [queue.take() for queue in (first, lost)] == [Turn("a"), Turn("b")]
    assert heir.take() == Turn("c"), "nobody is lost yet"
    heir.end("c")
    assert heir.take({1}) == Turn("b", again=True)
    assert late.take({1}) == Turn("d"), "it has another one by now"
    for queue, name in ((heir, "b"), (late, "d"), (first, "a")):
        queue.end(name)
    assert heir.over and not heir.problems


def test_what_a_lost_replica_had_ended_stays_so(queues):
    first, lost, *_ = queues
    lost.take()
    lost.end("a")
    lost.take()
    lost.end("b", "failed by itself")
    assert rest(first, {1}) == [Turn("c"), Turn("d")]
    assert first.problems == {"b": "failed by itself"}


def test_a_request_does_not_take_all_replicas_along(queues):
    first, second, third, last = queues
    assert second.take() == Turn("a")
    assert third.take({1}) == Turn("a", again=True)
    assert rest(last, {1, 2}) == [Turn("b"), Turn("c"), Turn("d")]
    assert first.over and first.ended == 4
    assert all(names(first.problems["a"], number) for number in (1, 2))


def test_what_is_taken_is_told_whole():
    for taken in (Taken(0), Taken(3, (1, 2), over=True, problem="„no“\n")):
        assert Taken.of(taken.text) == taken
