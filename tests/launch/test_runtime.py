"""Devices and process groups, whatever kind of accelerator there is."""

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from lvsa.errors import CommunicationError, LVSAError
from lvsa.launch.config import ProcessesConfig
from lvsa.launch.processes import meeting, runtime
from lvsa.launch.processes.devices import collective_backends, pick_device
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.meeting import meet
from lvsa.launch.processes.runtime import start
from tests.support.errors import refuses

CPU = torch.device("cpu")


@pytest.fixture(params=["cuda", "xpu", "npu", "mps"])
def accelerator(request, monkeypatch):
    """Two devices of a kind that is not here."""
    kind = request.param
    if kind == "npu":
        # torch knows this kind of device by a name that its plug-in gives.
        kind = "privateuseone"
    device = torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    return kind


def test_auto_is_the_accelerator_that_is_there(accelerator):
    assert pick_device("auto", 1) == torch.device(accelerator, 1)
    assert pick_device(accelerator, 0) == torch.device(accelerator, 0)
    assert pick_device("cpu", 7) == CPU
    with refuses(LVSAError, 2, f"--nproc_per_node={2}"):
        pick_device("auto", 2)
    other = "xpu" if accelerator == "cuda" else "cuda"
    with refuses(LVSAError, f"--device {other}", accelerator, "auto", "cpu"):
        pick_device(other, 0)


def test_without_an_accelerator(monkeypatch):
    # A build for an accelerator, on a machine that has none.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device("auto", 3) == CPU
    for kind in ("cuda", "npu", "xpu", "mps"):
        with refuses(LVSAError, f"--device {kind}", "auto", "cpu"):
            pick_device(kind, 0)


@pytest.mark.parametrize(
    ("kind", "backends"),
    [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl"), ("xpu", "cpu:gloo,xpu:xccl")],
)
def test_collectives_are_the_devices_own_and_gloo_for_cpu_tensors(kind, backends):
    assert collective_backends(kind) == backends


def test_ranks_that_cannot_meet_name_the_place(monkeypatch):
    """Another job listens there, nobody does, there is no such place, or nobody comes."""
    monkeypatch.setattr(runtime, "ARRIVAL", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refuses(LVSAError, "127.0.0.1", str(port)):
            join(Place(0, 2, 0, "127.0.0.1", port))
    with refuses(LVSAError, "rank 0 of 2", f"127.0.0.1:{port}", 1):
        join(Place(0, 2, 0, "127.0.0.1", port))
    for address in ("127.0.0.1", "no-such-host.invalid"):
        with refuses(LVSAError, address, str(port)):
            join(Place(1, 2, 1, address, port))


def join(place):
    with start(ProcessesConfig(timeout=1), place, watch=None):
        pytest.fail("joined nobody")


@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_store_that_was_used_before_has_a_part_that_nobody_used(world):
    """Processes that are started again meet those of their own attempt, in whatever order."""
    store = dist.HashStore()
    limit = timedelta(seconds=20)
    for attempt in range(3):
        with ThreadPoolExecutor(world) as pool:
            # The first comes last, when all others have asked.
            places = [Place(rank, world, rank, "", 0) for rank in range(world)]
            order = places if attempt == 1 else places[::-1]
            guard = ["here", attempt, "token"]
            met = [*pool.map(lambda p: meet(store, p, limit, guard if p.first else None), order)]
        assert all(told == guard for _, told in met)
        parts = [part for part, _ in met]
        for i, part in enumerate(parts):
            assert not part.check(["lvsa/guard"])
            part.set(f"lvsa/{i}", str(attempt))
        for part in parts:
            assert [part.get(f"lvsa/{i}") for i in range(world)] == [b"%d" % attempt] * world
            part.set("lvsa/guard", "left behind")


def test_ranks_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(meeting, "MARGIN", 0.1)
    arrival = timedelta(seconds=0.2)
    with refuses(CommunicationError, "rank 1 of 3", "rank 0", 0.2):
        meet(dist.HashStore(), Place(1, 3, 1, "", 0), arrival)
    with refuses(CommunicationError, "rank 0 of 3", "rank 1, 2", 0.3):
        meet(dist.HashStore(), Place(0, 3, 0, "", 0), arrival)
