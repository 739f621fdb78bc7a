"""The processes of a job meet: in a part of their store that is theirs alone, and their guards.

torchrun keeps its store when it starts processes again (``--max-restarts``), with everything that
those before them have left: addresses where nobody listens any more, facts about ranks, what was
taken of a list. The first rank makes up a name for the part of this attempt, and tells it to those
who ask now: a question from before is never asked again.
"""

import ipaddress
import json
import socket
import time
import uuid
from datetime import timedelta

from torch import distributed as dist

from lvsa.errors import CommunicationError
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.watch import Watch

PAUSE = 0.01
"""Seconds after which the first rank looks again who has come."""


def own_part(store: dist.Store, place: Place, limit: timedelta) -> dist.Store:
    """A part of the job's store in which nothing stands yet, the same on every rank.

    Args:
        store: that all ranks reach, whoever used it before.
        place: this process among the others, all of which must call this.
        limit: how long ranks wait for one another.

    Raises:
        CommunicationError: naming the ranks that have not come.
    """
    name = _tell_all(store, place, limit) if place.first else _ask(store, place, limit)
    return dist.PrefixStore(name, store)


def _tell_all(store: dist.Store, place: Place, limit: timedelta) -> str:
    name, answered = uuid.uuid4().hex, dict[int, bytes]()
    missing, end = {*range(1, place.world)}, time.monotonic() + limit.total_seconds()
    while missing:
        for rank in sorted(missing):
            key = f"lvsa/asks/{rank}"
            if not store.check([key]):
                continue
            # What stands there first may be a question from before.
            asks = store.get(key)
            if answered.get(rank) != asks:
                answered[rank] = asks
                store.set(_answer_to(asks.decode()), name)
            if store.check([_heard(name, rank)]):
                missing.discard(rank)
        if missing and time.monotonic() > end:
            late = ", ".join(map(str, sorted(missing)))
            raise CommunicationError(
                f"rank 0 of {place.world}: rank {late} did not come "
                f"within {limit.total_seconds():g} s (--timeout)"
            )
        time.sleep(PAUSE)
    return name


def _ask(store: dist.Store, place: Place, limit: timedelta) -> str:
    asks = uuid.uuid4().hex
    store.set(f"lvsa/asks/{place.rank}", asks)
    try:
        store.wait([_answer_to(asks)], limit)
    except dist.DistStoreError as error:
        raise CommunicationError(
            f"rank {place.rank} of {place.world}: rank 0 did not come within "
            f"{limit.total_seconds():g} s (--timeout)"
        ) from error
    name = store.get(_answer_to(asks)).decode()
    store.set(_heard(name, place.rank), "")
    return name


def _answer_to(asks: str) -> str:
    return f"lvsa/answers/{asks}"


def _heard(name: str, rank: int) -> str:
    return f"lvsa/heard/{name}/{rank}"


def join_guards(watch: Watch, store: dist.Store, place: Place) -> None:
    """The guards of all ranks call that of the first."""
    if place.first:
        store.set("lvsa/guard", json.dumps([_own_address(place), *watch.listen()]))
    else:
        watch.join(*json.loads(store.get("lvsa/guard")))


def _own_address(place: Place) -> str:
    """Where other ranks reach this host.

    torchrun's store may be on another node. Where it is here, its address has served all already.
    """
    family, *_, there = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: this asks for the way there.
        probe.connect(there)
        here = str(probe.getsockname()[0])
    local = here == there[0] or ipaddress.ip_address(str(there[0])).is_loopback
    return str(place.address) if local else here
