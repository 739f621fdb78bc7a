"""Which rank a job fails by: a table of what is known of each, and the rules that judge it.

Pure: the time is given, and nothing is read or sent. A rank that has died, or that says what went
wrong, is judged at once; one that is silent, or stands still while others wait, after a time. The
ranks that only wait for it have errors too, of connections that closed: theirs count last.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lvsa.launch.processes.progress import DONE, ORDER, TOGETHER, described

# Seconds for work that nobody else takes part in, like loading on a slow file system or decoding
# on a CPU: a rank that is heard from but has been in one phase for longer is taken for hung.
ALONE_LIMIT = 6 * 3600.0
# Seconds that a rank may come later than the first, since its node reads programs more slowly.
ARRIVAL = 300.0
# Seconds that any machine may need to let a living process speak, whatever --timeout says.
SHORTEST = 4.0
USER_ERROR, FAILURE = 2, 1


class Fault(StrEnum):
    """How a rank ended, or what it says it did."""

    DIED = "died"
    """Its process is gone and said nothing."""
    FAILED = "failed"
    """It raised an error of its own."""
    REFUSED = "refused"
    """It found a user's mistake."""
    INCOMPLETE = "incomplete"
    """It did its work, some of which failed and has been told of."""
    SIGNAL = "signal"
    """It was asked to end."""
    LOST = "lost"
    """Its node cannot be reached."""
    CUT = "cut"
    """A collective failed, most often since another rank has died."""


# What ranks find together, and the first of them tells.
SHARED = (Fault.REFUSED, Fault.INCOMPLETE)
# Seconds in which a fault nearer to the cause may still be told.
GRACE = {
    Fault.DIED: 0.0,
    Fault.FAILED: 0.0,
    Fault.REFUSED: 0.5,
    Fault.INCOMPLETE: 0.5,
    Fault.SIGNAL: 0.5,
    Fault.LOST: 1.0,
    Fault.CUT: 5.0,
}


@dataclass(frozen=True)
class Verdict:
    """Why the job ends.

    Args:
        rank: that it ends by.
        message: for the user.
        code: exit code of all ranks.
        log: file with details, on that rank's host.
        found_by_all: whether every rank comes to it by itself.
        replica: number of the one that ends, where the others go on; None where all end.
    """

    rank: int
    message: str
    code: int = FAILURE
    log: str | None = None
    found_by_all: bool = False
    replica: int | None = None


@dataclass
class Row:
    """What is known of one rank.

    Args:
        heard, moved: when it was last heard from, and when it last went on.
        fault, text, told: what went wrong, in its words, and when it was told.
    """

    heard: float
    moved: float
    host: str | None = None
    log: str | None = None
    beat: dict[str, Any] = field(default_factory=lambda: {"phase": ORDER[0]})
    finished: bool = False
    fault: Fault | None = None
    text: str = ""
    told: float = 0.0

    @property
    def phase(self) -> str:
        """The phase that it is in."""
        return str(self.beat["phase"])

    @property
    def reached(self) -> tuple[int, int, int, int]:
        """How far it has come, to be compared with others: video, phase, step and count."""
        video, step, count = (self.beat.get(name) or 0 for name in ("video", "step", "count"))
        return video, ORDER.index(self.phase), step, count


class Table:
    """All ranks of a job, as the guard of the first one sees them.

    Args:
        ranks: their numbers.
        world: of how many they are; a rank that has not met the others yet is judged alone.
        now: seconds of a clock that never goes back.
        timeout: seconds after which a silent rank, or one that others wait for, has hung.
    """

    def __init__(self, ranks: Iterable[int], world: int, now: float, timeout: float) -> None:
        self.world = world
        self.limit(timeout)
        self.rows = {rank: Row(now, now) for rank in ranks}

    def part(self, ranks: Iterable[int]) -> "Table":
        """Some of the ranks, to be judged by themselves: nobody else waits for them."""
        part = Table((), self.world, 0.0, self.timeout)
        part.rows = {rank: self.rows[rank] for rank in ranks}
        return part

    def limit(self, timeout: float) -> None:
        """Sets the timeout."""
        self.timeout = max(timeout, SHORTEST)

    @property
    def finished(self) -> bool:
        """Whether all ranks have done their work."""
        return all(row.finished for row in self.rows.values())

    def hello(self, rank: int, host: str, log: str, now: float) -> None:
        """A rank is there, on a host, and writes its details into a log file."""
        row = self.rows[rank]
        row.host, row.log, row.heard = host, log, now

    def beat(self, rank: int, beat: dict[str, Any], now: float) -> None:
        """A rank lives, and says where it is."""
        row = self.rows[rank]
        row.heard = now
        if beat != row.beat:
            row.beat, row.moved = beat, now

    def finish(self, rank: int) -> None:
        """A rank has done its work."""
        self.rows[rank].finished = True

    def report(self, rank: int, fault: Fault, text: str, now: float) -> None:
        """A rank has failed; what it said first counts."""
        row = self.rows[rank]
        if row.fault is None:
            row.fault, row.text, row.told = fault, text, now

    def paused(self, seconds: float) -> None:
        """The watcher itself stood still, as when a whole job is suspended: nobody is to blame."""
        for row in self.rows.values():
            row.heard += seconds
            row.moved += seconds
            row.told += seconds

    def verdict(self, now: float) -> Verdict | None:
        """Why the job has to end, if it has to."""
        return self._told(now) or self._silent(now) or self._stalled(now)

    def _told(self, now: float) -> Verdict | None:
        faults = {rank: row for rank, row in self.rows.items() if row.fault}
        if not faults:
            return None
        rank, row = min(faults.items(), key=lambda pair: _weight(*pair))
        assert row.fault is not None
        if now - row.told < GRACE[row.fault]:
            return None
        if row.fault in SHARED:
            code = USER_ERROR if row.fault is Fault.REFUSED else FAILURE
            return Verdict(rank, row.text, code, found_by_all=True)
        words = {
            Fault.DIED: "ended without a word (killed, out of memory, or crashed)",
            Fault.FAILED: "failed",
            Fault.SIGNAL: "was ended",
            Fault.LOST: "cannot be reached any more",
            Fault.CUT: "lost the others",
        }[row.fault]
        said = f": {row.text}" if row.text else ""
        message = f"{self._name(rank)} {words} in {self._where(rank)}{said}"
        return (
            Verdict(rank, message) if row.fault is Fault.SIGNAL else self._detailed(rank, message)
        )

    def _silent(self, now: float) -> Verdict | None:
        """A rank whose process is there, but has not been heard from: stopped, or never arrived."""
        if self.world == 1:
            return None
        by_silence = sorted(self.rows.items(), key=lambda pair: pair[1].heard)
        come = [(rank, row) for rank, row in by_silence if row.host is not None]
        if len(come) < len(by_silence):
            rank, row = next(pair for pair in by_silence if pair[1].host is None)
            if now - row.heard > max(self.timeout, ARRIVAL):
                return Verdict(rank, f"rank {rank} of {self.world} did not come")
        if not come:
            return None
        rank, row = come[0]
        waited = now - row.heard
        if waited <= self.timeout:
            return None
        what = f"{self._name(rank)} not heard from since {self._where(rank)}: stopped or hung"
        return self._detailed(rank, f"{what}; waited {waited:.0f} s{self._flag}")

    def _stalled(self, now: float) -> Verdict | None:
        """A rank that lives and does not go on, while others wait for it."""
        working = {i: row for i, row in self.rows.items() if row.phase != DONE}
        if len(self.rows) == 1 or not working:
            return None
        # Those that are behind are waited for; the others wait.
        last = min(row.reached for row in working.values())
        behind = {rank: row for rank, row in working.items() if row.reached == last}
        # Of those in one place, the ones inside a collective wait for the others.
        behind = {i: row for i, row in behind.items() if not row.beat.get("waits")} or behind
        together = ORDER[last[1]] == TOGETHER
        limit = self.timeout if together else max(self.timeout, ALONE_LIMIT)
        still = now - max(row.moved for row in working.values())
        if still <= limit:
            return None
        rank = min(behind)
        names = " and ".join(self._name(rank) for rank in behind)
        flag = self._flag if limit == self.timeout else ""
        return self._detailed(
            rank, f"{names} did not go on for {still:.0f} s{flag} in {self._where(rank)}"
        )

    def _detailed(self, rank: int, message: str) -> Verdict:
        row = self.rows[rank]
        return Verdict(rank, f"{message}\ndetails: {row.log} on {row.host}", log=row.log)

    @property
    def _flag(self) -> str:
        return f" (--timeout {self.timeout:g})"

    def _name(self, rank: int) -> str:
        if self.world == 1:
            return "the job"
        return f"rank {rank} on {self.rows[rank].host or 'an unknown host'}"

    def _where(self, rank: int) -> str:
        beat = self.rows[rank].beat
        return described(str(beat["phase"]), beat.get("step"), beat.get("steps"))


def _weight(rank: int, row: Row) -> tuple[int, float, int]:
    """The fault with the least is told: by its kind, its time and its rank."""
    assert row.fault is not None
    return list(Fault).index(row.fault), 0 if row.fault in SHARED else row.told, rank
