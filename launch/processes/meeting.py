"""The processes of a job meet, in a part of their store that is theirs alone.

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
from typing import Any

from torch import distributed as dist

from lvsa.errors import CommunicationError
from lvsa.launch.processes.environment import Place

PAUSE = 0.01
"""Seconds after which the first rank looks again who has come."""
MARGIN = 30.0
"""Seconds for the guards to tell who is late, before the first rank does."""


Guard = list[Any]
"""Where the guard of the first rank listens: what `Watch.join` takes."""


def meet(
    store: dist.Store, place: Place, arrival: timedelta, guard: Guard | None = None
) -> tuple[dist.Store, Guard | None]:
    """A part of the job's store in which nothing stands yet, and the first rank's guard.

    The same on every rank; all of them must call this.

    Args:
        store: that all ranks reach, whoever used it before.
        place: this process among the others.
        arrival: how much later than another a rank may come.
        guard: on the first rank, where its guard listens. It may judge who is late before this.

    Raises:
        CommunicationError: naming the ranks that have not come.
    """
    if place.first:
        name = _tell_all(store, place, arrival, guard)
    else:
        name, guard = _ask(store, place, arrival)
    return dist.PrefixStore(name, store), guard


def _tell_all(store: dist.Store, place: Place, arrival: timedelta, guard: Guard | None) -> str:
    name, answered = uuid.uuid4().hex, dict[int, bytes]()
    missing = {*range(1, place.world)}
    # After the guards, which know more.
    limit = arrival.total_seconds() + MARGIN
    end = time.monotonic() + limit
    while missing:
        for rank in sorted(missing):
            key = f"lvsa/asks/{rank}"
            if not store.check([key]):
                continue
            # What stands there first may be a question from before.
            asks = store.get(key)
            if answered.get(rank) != asks:
                answered[rank] = asks
                store.set(_answer_to(asks.decode()), json.dumps([name, guard]))
            if store.check([_heard(name, rank)]):
                missing.discard(rank)
        if missing and time.monotonic() > end:
            late = ", ".join(map(str, sorted(missing)))
            raise CommunicationError(
                f"rank 0 of {place.world}: rank {late} did not come within {limit:g} s"
            )
        time.sleep(PAUSE)
    return name


def _ask(store: dist.Store, place: Place, arrival: timedelta) -> tuple[str, Guard | None]:
    asks = uuid.uuid4().hex
    store.set(f"lvsa/asks/{place.rank}", asks)
    try:
        store.wait([_answer_to(asks)], arrival)
    except dist.DistStoreError as error:
        raise CommunicationError(
            f"rank {place.rank} of {place.world}: rank 0 did not come within "
            f"{arrival.total_seconds():g} s"
        ) from error
    name, guard = json.loads(store.get(_answer_to(asks)))
    store.set(_heard(name, place.rank), "")
    return name, guard


def _answer_to(asks: str) -> str:
    return f"lvsa/answers/{asks}"


def _heard(name: str, rank: int) -> str:
    return f"lvsa/heard/{name}/{rank}"


def own_address(place: Place) -> str:
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
