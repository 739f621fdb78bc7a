"""Processes of this machine that share a benchmark: one group, one result from each."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from lvsa.launch.processes.runtime import collective_backends, pick_device

TIMEOUT = timedelta(minutes=10)


def run_ranks(
    world: int, device: str, function: Callable[..., dict[str, Any]], *arguments: Any
) -> list[dict[str, Any]]:
    """Results of ``function(*arguments, device)`` on every rank, in rank order.

    Args:
        world: processes; a single one is this process itself.
        device: auto, or a kind of device.
        function: of a module, so that other processes can import it.
        arguments: the function's, picklable.
    """
    if world == 1:
        return [function(*arguments, pick_device(device, 0))]
    with tempfile.TemporaryDirectory() as folder:
        # A server that has imported everything once forks ranks at once, before any CUDA.
        mp.set_forkserver_preload([function.__module__])
        mp.start_processes(
            _rank,
            args=(world, device, folder, function, arguments),
            nprocs=world,
            start_method="forkserver",
        )
        files = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        return [torch.load(file, weights_only=True) for file in files]


def _rank(
    rank: int, world: int, device: str, folder: str, function: Any, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    chosen = pick_device(device, rank)
    if chosen.type != "cpu":
        torch.accelerator.set_device_index(chosen.index)
    dist.init_process_group(
        collective_backends(chosen.type),
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    torch.save(function(*arguments, chosen), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def settle(device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Waits until nothing is left to do on the device, and for the other ranks of the group."""
    synchronize(device)
    if group is not None:
        dist.barrier(group)


def synchronize(device: torch.device) -> None:
    """Waits until nothing is left to do on the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name of the device's hardware; "cpu" for processors."""
    if device.type == "cpu":
        return "cpu"
    return str(torch.get_device_module(device).get_device_name(device))
