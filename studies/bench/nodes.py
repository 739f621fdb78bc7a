"""Two nodes on one machine: network namespaces with a link whose rate is limited. Needs root.

A rank is a process of its own in one of the namespaces; ranks of a node meet over its loopback,
others over the link, a pair of virtual Ethernet devices with `tc`'s token bucket at both ends.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from lvsa.errors import LVSAError

LINK = "lvsa0"
"""Name of the device at either end of the link."""
TIMEOUT = timedelta(minutes=2)
"""Of a collective."""
LONGEST = 3600
"""Seconds that ranks may take."""


@dataclass(frozen=True)
class Node:
    """A network namespace.

    Args:
        namespace: its name.
        address: of its end of the link.
    """

    namespace: str
    address: str

    def inside(self, *command: str) -> list[str]:
        """A command that runs in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *command]


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two namespaces that reach each other, for as long as the block lasts.

    Raises:
        LVSAError: where namespaces cannot be made: no root, no iproute2.
    """
    here = os.getpid()
    nodes = Node(f"lvsa-{here}-0", "10.77.0.1"), Node(f"lvsa-{here}-1", "10.77.0.2")
    try:
        for node in nodes:
            _run("ip", "netns", "add", node.namespace)
        a, b = (node.namespace for node in nodes)
        _run(
            *("ip", "link", "add", LINK, "netns", a, "type", "veth"),
            *("peer", "name", LINK, "netns", b),
        )
        for node in nodes:
            _run(*node.inside("ip", "address", "add", f"{node.address}/24", "dev", LINK))
            for device in (LINK, "lo"):
                _run(*node.inside("ip", "link", "set", device, "up"))
        yield nodes
    finally:
        for node in nodes:
            subprocess.run(
                ["ip", "netns", "delete", node.namespace], check=False, capture_output=True
            )


def limit(bits: float) -> None:
    """Sets the rate at which this process's node sends, bits/s. All nodes have to do it."""
    # Enough for the ticks of the kernel's clock, and for one packet before it is cut.
    burst = max(64_000, round(bits / 8 * 0.004))
    _run(
        *("tc", "qdisc", "replace", "dev", LINK, "root", "tbf", "rate", f"{round(bits)}bit"),
        *("burst", f"{burst}b", "latency", "400ms"),
    )


def arrived() -> int:
    """Bytes that came over the link to this process's node since it was made."""
    return int(Path(f"/sys/class/net/{LINK}/statistics/rx_bytes").read_text())


def run_on(
    nodes: tuple[Node, ...], world: int, function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """``function(*arguments)`` on every rank, as many on each node; results in rank order.

    Args:
        nodes: that ranks are dealt out to, one node after the other.
        world: ranks.
        function: of a module, so that other processes can import it.
        arguments: the function's, picklable.

    Raises:
        LVSAError: where a rank fails, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = function.__module__, function.__qualname__, arguments
        (Path(folder) / "task").write_bytes(pickle.dumps(task))
        ranks = []
        for rank in range(world):
            node = nodes[rank * len(nodes) // world]
            command = [sys.executable, "-m", __name__, folder, str(rank), str(world)]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": LINK}
            with open(Path(folder) / f"{rank}.log", "wb") as log:
                ranks.append(subprocess.Popen(node.inside(*command), env=environment, stderr=log))
        try:
            ended = [process.wait(LONGEST) for process in ranks]
            if any(ended):
                # All of them: a rank that fails takes others with it.
                logs = [
                    f"rank {r}: {(Path(folder) / f'{r}.log').read_text()}" for r in range(world)
                ]
                raise LVSAError("ranks failed:\n" + "\n".join(logs))
        finally:
            for process in ranks:
                process.kill()
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world)]


def _rank(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    module, name, arguments = pickle.loads((Path(folder) / "task").read_bytes())
    result = getattr(import_module(module), name)(*arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise LVSAError(
            f"{' '.join(command)}: {said.strip()}; it needs root and iproute2"
        ) from error


if __name__ == "__main__":
    _rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
