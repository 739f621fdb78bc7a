"""Ranks judged replica by replica, from where nothing is shared by all of a job any more.

One that dies takes its replica along: the others of it wait for it in the middle of a video. Ranks
of other replicas do not, and can make what that one was making, where they are let live.
"""

from collections.abc import Collection
from dataclasses import replace

from lvsa.launch.processes.verdict import Table, Verdict


class Replicas:
    """The replicas of a job; one, until `part` says otherwise.

    Args:
        table: what is known of each rank.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.lost: dict[int, bool] = {}
        """Replicas that have ended, or are about to, and whether all of their ranks are gone."""
        self._count, self._outlive = 1, False

    @property
    def finished(self) -> bool:
        """Whether all ranks have done their work, but those of replicas that were lost."""
        return all(self._part(n).finished for n in range(self._count) if n not in self.lost)

    def part(self, count: int, outlive: bool) -> None:
        """From now on each replica is judged by itself.

        Args:
            count: of replicas; each has as many ranks, next to one another.
            outlive: whether the others go on where one is lost.
        """
        self._count, self._outlive = count, outlive

    def ranks(self, number: int | None) -> range:
        """The ranks of a replica; of all for None."""
        if number is None:
            return range(self.table.world)
        size = self.table.world // self._count
        return range(number * size, (number + 1) * size)

    def verdict(self, now: float) -> Verdict | None:
        """Why the job has to end, or one of its replicas, which counts as lost then.

        All end with the first replica: its first rank holds the store of the job.
        """
        for number in range(self._count):
            verdict = None if number in self.lost else self._part(number).verdict(now)
            if verdict is None:
                continue
            if number == 0 or verdict.found_by_all or not self._outlive:
                return verdict
            self.lost[number] = False
            message = f"{verdict.message}\nreplica {number} is lost; the others go on"
            return replace(verdict, message=message, replica=number)
        return None

    def gone(self, left: Collection[int]) -> list[int]:
        """Replicas that are lost and have no rank any more; each is told once.

        Args:
            left: ranks whose guards have gone, and with them their processes.
        """
        gone = [
            number
            for number, known in self.lost.items()
            if not known and all(rank in left for rank in self.ranks(number))
        ]
        self.lost.update(dict.fromkeys(gone, True))
        return gone

    def _part(self, number: int) -> Table:
        return self.table if self._count == 1 else self.table.part(self.ranks(number))
