"""The guard of a rank: a small process beside it that lives on when the rank dies or hangs.

It is told by its rank where that is, twice a second, and tells the guard of the first rank, which
judges (`Table`) and tells all guards when and why the job ends. Then each ends its own rank, in any
state; on every node one of them says why. It also removes the files that its rank would have
removed. It needs the standard library alone, so that it starts in an instant and stays small.
"""

import hmac
import json
import os
import platform
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvsa.launch.processes.environment import leave_for_torchrun
from lvsa.launch.processes.lines import Lines, kept_alive
from lvsa.launch.processes.progress import ORDER
from lvsa.launch.processes.replicas import Replicas
from lvsa.launch.processes.verdict import USER_ERROR, Fault, Table, Verdict
from lvsa.launch.records.temporary import remove_abandoned

# Seconds between two looks at the clock.
TICK = 0.25
# Seconds in which torchrun may end the other ranks of a node when the first has ended.
LAG = 1.0
# Seconds that a rank has to end by itself once it was told to.
PATIENCE = 3.0
# Seconds without a look at the clock, after which this process itself was stopped.
ASLEEP = 5.0
# Seconds in which guards that have not called yet are waited for when the job ends.
LATE = 5.0
# Seconds in which the first rank's guard has to answer when it is called.
ANSWER = 30.0
# Seconds that a rank with a mistake in its settings, not yet joined, leaves the word to the first.
SILENCE = 30.0


@dataclass(frozen=True)
class Post:
    """What a guard guards.

    Args:
        rank, world, local_rank: of the rank.
        pid: process id of the rank.
        log: file with the details.
        keep_log: whether it stays when all went well.
    """

    rank: int
    world: int
    local_rank: int
    pid: int
    log: str
    keep_log: bool


class Guard:
    """One guard at work.

    Args:
        post: what it guards.
        up: connection to its rank.
    """

    def __init__(self, post: Post, up: Lines) -> None:
        self.post = post
        self.up = up
        self.hub: Lines | None = None
        self.joined = post.rank == 0
        self.listener: socket.socket | None = None
        self.token = ""
        self.callers: dict[Lines, int | None] = {}
        self.left: set[int] = set()
        # Before it has joined the others, a rank has a table of its own.
        ranks = range(post.world) if post.rank == 0 else [post.rank]
        self.table = Table(ranks, post.world, time.monotonic(), float("inf"))
        self.replicas = Replicas(self.table)
        self.files: set[str] = set()
        self.verdict: Verdict | None = None
        self.ended = 0.0
        self.told = False
        self.alive = True
        self.done = False
        self._hear(self._hello())

    def run(self) -> None:
        """Serves until the rank has ended, and nothing more is to be said."""
        before = time.monotonic()
        while self.alive or not (self.done or (self.verdict and self._all_told)):
            self._serve()
            now = time.monotonic()
            if now - before > ASLEEP:
                self.table.paused(now - before)
            before = now
            if self.verdict is None and not self.done:
                self._judge(now)
            elif self.verdict and self.alive:
                self._end_rank(self.verdict, now - self.ended)
        self._clean_up()

    @property
    def _all_told(self) -> bool:
        """Whether no other guard will call any more that has to be told of the end."""
        missing = self.post.world - 1 - sum(rank is not None for rank in self.callers.values())
        late = time.monotonic() - self.ended > LATE
        return self.listener is None or missing <= len(self.left) or late

    def _serve(self) -> None:
        """Waits a moment for messages, and answers them."""
        sources: list[Any] = [*self.callers, *filter(None, (self.hub, self.listener))]
        ready, _, _ = select.select([*sources, *([self.up] if self.alive else [])], [], [], TICK)
        for source in ready:
            if source is self.listener:
                self._welcome()
                continue
            messages = source.receive()
            for message in messages or ():
                if source is self.up:
                    self._from_rank(message)
                elif source is self.hub:
                    self._from_hub(message)
                elif source in self.callers:
                    self._from_caller(source, message)
            if messages is None:
                self._gone(source)

    def _from_rank(self, message: dict[str, Any]) -> None:
        if "timeout" in message:
            self.table.limit(message["timeout"])
        elif "listen" in message:
            self.listener, self.token = socket.create_server(("", 0)), message["listen"]
            self.up.send(port=self.listener.getsockname()[1])
        elif "join" in message:
            self._join(*message["join"])
        elif "replicas" in message:
            self.replicas.part(*message["replicas"])
        elif "keep" in message:
            self.files.discard(message["keep"])
        elif "remove" in message:
            self.files.add(message["remove"])
        else:
            self._tell(message)

    def _tell(self, message: dict[str, Any]) -> None:
        """Brings news of our rank to whoever judges."""
        if self.verdict and "fault" in message:
            # torchrun ends it since another has failed; it lists those that do not end with 0.
            self.up.send(end=0 if message["fault"] == Fault.SIGNAL else self.verdict.code)
            self.told = True
            return
        if self.hub is not None:
            self.hub.send(**message)
        self._hear({"rank": self.post.rank, **message})

    def _hear(self, message: dict[str, Any]) -> None:
        """News of a rank, for the table."""
        rank, now = message["rank"], time.monotonic()
        if "host" in message:
            self.table.hello(rank, message["host"], message["log"], now)
        if "beat" in message:
            self.table.beat(rank, message["beat"], now)
        if "fault" in message:
            self.table.report(rank, Fault(message["fault"]), message["text"], now)
        if "finished" in message:
            self.table.finish(rank)

    def _hello(self) -> dict[str, Any]:
        return {"rank": self.post.rank, "host": platform.node(), "log": self.post.log}

    def _join(self, address: str, port: int, token: str) -> None:
        try:
            called = socket.create_connection((address, port), ANSWER)
        except OSError as error:
            place = f"the guard of rank 0 at {address}:{port}"
            self._end(Verdict(0, f"rank {self.post.rank} finds no way to {place}: {error}"))
            return
        called.settimeout(None)
        self.hub, self.joined = Lines(kept_alive(called)), True
        self.hub.send(token=token, **self._hello(), beat=self.table.rows[self.post.rank].beat)

    def _welcome(self) -> None:
        assert self.listener is not None
        with suppress(OSError):
            connection, _ = self.listener.accept()
            self.callers[Lines(kept_alive(connection))] = None

    def _from_caller(self, caller: Lines, message: dict[str, Any]) -> None:
        known = self.callers[caller]
        if known is None:
            token, rank = str(message.get("token")), message.get("rank")
            if not hmac.compare_digest(token, self.token) or rank not in range(self.post.world):
                # Somebody who has nothing to do with this job.
                caller.close()
                del self.callers[caller]
                return
            known = self.callers[caller] = int(str(rank))
            if self.verdict:
                caller.send(end=vars(self.verdict))
        self._hear({**message, "rank": known})

    def _from_hub(self, message: dict[str, Any]) -> None:
        if "done" in message:
            self._finish()
        elif "lost" in message:
            self.up.send(**message)
        elif "end" in message:
            self._end(Verdict(**message["end"]))

    def _gone(self, source: Any) -> None:
        """A connection has ended."""
        source.close()
        if source is self.up:
            self.alive = False
            if not self.done and not self.verdict:
                self._tell({"fault": Fault.DIED, "text": ""})
        elif source is self.hub:
            self.hub = None
            if not self.done and not self.verdict:
                self._end(Verdict(0, "rank 0 cannot be reached any more: its node was lost"))
        else:
            rank = self.callers.pop(source, None)
            if rank is not None:
                self.left.add(rank)
                self._hear({"rank": rank, "fault": Fault.LOST, "text": ""})

    def _judge(self, now: float) -> None:
        """What the first rank's guard decides for all; others do until they have joined."""
        if self.post.rank and self.joined:
            return
        if self.post.rank == 0 and self.replicas.finished:
            for caller in self.callers:
                caller.send(done=True)
            self._finish()
            return
        for lost in self.replicas.gone(self.left):
            for other in (self.up, *self.callers):
                other.send(lost=lost)
        verdict = self.replicas.verdict(now)
        if verdict is None:
            return
        told = self.table.rows[self.post.rank].told
        if self.post.rank and verdict.code == USER_ERROR and self.alive and now - told < SILENCE:
            # Others have made the same mistake, and the first speaks for all.
            return
        ending = self.replicas.ranks(verdict.replica)
        for caller, rank in self.callers.items():
            if rank in ending:
                caller.send(end=vars(verdict))
        if self.post.rank in ending:
            self._end(verdict)
        else:
            self._say(verdict)

    def _finish(self) -> None:
        self.done = True
        self.up.send(done=True)

    def _end(self, verdict: Verdict) -> None:
        """The job ends: the rank is told, and one guard of the node tells the user."""
        self.verdict, self.ended = verdict, time.monotonic()
        if self.post.local_rank == 0 or not self.joined:
            self._say(verdict)
        if self._leads:
            leave_for_torchrun(verdict.message)
        self._end_rank(verdict, 0.0)

    def _say(self, verdict: Verdict) -> None:
        # The cursor may stand behind a progress bar, or in a line that the rank still writes.
        line = "" if self.post.rank or self.table.rows[0].phase == ORDER[0] else "\n"
        os.write(2, f"{line}ERROR: {verdict.message}\n".encode(errors="backslashreplace"))

    @property
    def _leads(self) -> bool:
        """Whether the rank leaves before others of its node; torchrun lists those at length."""
        assert self.verdict is not None
        return self.post.local_rank == 0 or self.post.rank == self.verdict.rank

    def _end_rank(self, verdict: Verdict, waited: float) -> None:
        if not self.told and (self._leads or waited > LAG):
            self.up.send(end=verdict.code)
            self.told = True
        # While it is our parent, its number has not gone to another process.
        if waited > PATIENCE and os.getppid() == self.post.pid:
            with suppress(ProcessLookupError):
                os.kill(self.post.pid, signal.SIGKILL)

    def _clean_up(self) -> None:
        for file in self.files:
            remove_abandoned(Path(file))
        told = self.verdict is not None and self.verdict.log == self.post.log
        if not told and not self.post.keep_log:
            Path(self.post.log).unlink(missing_ok=True)


def main(argv: list[str]) -> None:
    """Guards the process that started this one.

    Args:
        argv: the descriptor of the connection to it, and a `Post` as JSON.
    """
    # It ends with its rank, whatever the process group is sent.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Guard(Post(**json.loads(argv[1])), Lines(socket.socket(fileno=int(argv[0])))).run()
