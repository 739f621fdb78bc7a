"""The requests of a job, each of which one replica takes: a slow one takes fewer.

What has become of a request stands in the job's store, where it changes in one step, from what was
read to what is meant: no two replicas take it, and one that ends does not take it along.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

MOST_LOST = 2
"""Replicas that may be lost in a request: what two did not survive no third one tries."""


@dataclass(frozen=True)
class Turn:
    """A request that is a replica's to make.

    Args:
        name: of the request.
        again: whether another replica had it before, and was lost in it.
    """

    name: str
    again: bool = False


@dataclass(frozen=True)
class Taken:
    """What has become of a request.

    Args:
        replica: number of the one that has it.
        lost: numbers of those that had it before.
        over: whether nobody has to make it any more.
        problem: why it is over and there is no video; None where there is one.
    """

    replica: int
    lost: tuple[int, ...] = ()
    over: bool = False
    problem: str | None = None

    @property
    def text(self) -> str:
        """All of it, for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Taken":
        """What `text` says."""
        values = json.loads(text)
        return cls(**{**values, "lost": tuple(values["lost"])})


class Queue:
    """The requests of a job, as one replica sees them.

    Args:
        names: of the requests, in the order in which they are taken; each once.
        store: of torch.distributed, the same for all replicas.
        replica: number of this one.
    """

    def __init__(self, names: Iterable[str], store: Any, replica: int) -> None:
        self._store, self._replica = store, replica
        # Those that are not known to be over: what is over stays so.
        self._problems: dict[str, str | None] = dict.fromkeys(names)
        self._open = list(self._problems)

    def take(self, lost: Collection[int] = ()) -> Turn | None:
        """The next request, which is this replica's then; None where there is none to be had now.

        Args:
            lost: numbers of replicas that have ended: what they were making is free again.
        """
        for name in list(self._open):
            text, taken = self._look(name)
            if taken is None:
                mine = Taken(self._replica)
            elif not taken.over and taken.replica in lost:
                mine = Taken(self._replica, (*taken.lost, taken.replica))
            else:
                continue
            if len(mine.lost) >= MOST_LOST:
                numbers = " and ".join(map(str, mine.lost))
                self.end(name, f"replicas {numbers} were lost while they made it")
            elif self._store.compare_set(_key(name), text, mine.text).decode() == mine.text:
                return Turn(name, again=bool(mine.lost))
        return None

    def end(self, name: str, problem: str | None = None) -> None:
        """A request is over: there is a video, or a problem."""
        self._store.set(_key(name), Taken(self._replica, over=True, problem=problem).text)
        self._store.add("lvsa/ended", 1)

    @property
    def ended(self) -> int:
        """How many requests are over."""
        return int(self._store.add("lvsa/ended", 0))

    @property
    def over(self) -> bool:
        """Whether all requests are."""
        for name in list(self._open):
            self._look(name)
        return not self._open

    @property
    def problems(self) -> dict[str, str]:
        """Why there is no video of requests that are over, by their names."""
        _ = self.over
        return {name: text for name, text in self._problems.items() if text is not None}

    def _look(self, name: str) -> tuple[str, Taken | None]:
        """What has become of a request, as the store has it and in our terms."""
        key = _key(name)
        if not self._store.check([key]):
            return "", None
        text = self._store.get(key).decode()
        taken = Taken.of(text)
        if taken.over:
            self._problems[name] = taken.problem
            self._open.remove(name)
        return text, taken


def _key(name: str) -> str:
    return f"lvsa/request/{name}"
