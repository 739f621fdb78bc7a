"""All videos of a list: each is made by the replica whose turn it is, and a failure ends no other.

The replicas of a job share nothing but its store, where the queue is, and the output folder. The
others write there what is theirs, and each brings the page of the list up to date.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import distributed as dist

from lvsa.errors import LVSAError
from lvsa.launch.processes.attempts import LeftAlone, attempt
from lvsa.launch.processes.progress import DONE
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.temporary import held, part_of
from lvsa.launch.requests.page import Page
from lvsa.launch.requests.plan import Video
from lvsa.launch.requests.queue import Queue, Turn

logger = logging.getLogger(__name__)

# Seconds between two looks at what other replicas make, when nothing else is left.
TICK = 0.2


def make_all(
    videos: Sequence[Video],
    make: Callable[[Video, bool], object],
    page: Page,
    runtime: Runtime,
    team: Runtime,
) -> dict[str, str]:
    """Makes videos one by one, as this replica gets them, until all replicas have made theirs.

    Args:
        videos: of the job that are not there yet.
        make: makes one, on all ranks of a replica; told whether another one left it behind.
        page: of the list.
        runtime: this process among those of the job.
        team: this process among those of its replica.

    Returns:
        What went wrong, by the names of the videos, the same on every rank of the job.
    """
    by_name = {video.stem.name: video for video in videos}
    # Nobody else takes anything where there is one replica.
    store = dist.HashStore() if team.replicas == 1 else runtime.store
    queue = Queue(by_name, store, team.replica)
    if team.replicas > 1 and runtime.first and runtime.watch is not None:
        runtime.watch.part(team.replicas)
    for turn in _turns(queue, team):
        team.progress.enter("planning")
        video = by_name[turn.name]
        left = ", left behind by a replica that was lost" if turn.again else ""
        logger.info("%s: %s%s", video.turn, turn.name, left)
        try:
            problem = attempt(team, turn.name, partial(make, video, turn.again))
        except LeftAlone as error:
            # Whoever takes it next would fail as well.
            queue.end(turn.name, str(error))
            raise
        if team.first:
            if problem is not None:
                logger.error("%s: %s failed: %s", video.turn, turn.name, problem)
            queue.end(turn.name, problem)
            _bring_up_to_date(page, queue)

    def last_word() -> dict[str, str]:
        _bring_up_to_date(page, queue)
        return queue.problems

    return runtime.patiently("problems", last_word)


def check_replicas(folder: Path, to_make: int, runtime: Runtime, team: Runtime) -> None:
    """Stops where replicas do not see one output folder; warns of those that have nothing to do.

    Args:
        folder: of the output, which exists on the first rank's node.
        to_make: number of videos that are not there yet.

    Raises:
        LVSAError: on every rank, naming those that see another folder.
    """
    if team.replicas == 1:
        return
    if runtime.first and to_make < team.replicas:
        logger.warning(
            "no effect: --replicas %d: %d video(s) are to be made, and as many replicas work",
            team.replicas,
            to_make,
        )
    sign = folder / runtime.from_first(part_of(folder / "sign").name)

    def look() -> None:
        if team.first and not sign.exists():
            raise LVSAError(
                f"--output-dir {folder}: this node does not see what the first rank writes there; "
                "all replicas write into one folder: give one that their nodes share"
            )

    with runtime.holding(lambda: held(sign)):
        runtime.together(look)


def _turns(queue: Queue, team: Runtime) -> Iterator[Turn]:
    """The requests of this replica, on all of its ranks, until those of all replicas are over."""

    def taken() -> dict[str, Any] | None:
        while (turn := queue.take(team.lost)) is None and not queue.over:
            team.progress.enter(DONE)
            time.sleep(TICK)
        return None if turn is None else asdict(turn)

    for number in itertools.count():
        if not team.first:
            team.progress.enter(DONE)
        facts = team.patiently(f"turn/{number}", taken)
        if facts is None:
            return
        yield Turn(**facts)


def _bring_up_to_date(page: Page, queue: Queue) -> None:
    """Writes the page; once more where a replica that had seen less may have written after us."""
    seen = None
    while seen != (now := queue.ended):
        seen = now
        page.write(queue.problems)
