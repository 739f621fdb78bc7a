"""Runs a function on N gloo ranks, each a process of its own."""

import multiprocessing as mp
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

# A forkserver that has imported everything once forks a rank in milliseconds.
PRELOAD = [
    "pytest",
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "diffusers",
    "transformers",
    "lvsa",
    "lvsa.adapters.install.enable",
    "tests.support.tiny",
    "tests.support.tiny_wan_family",
    "tests.support.tiny_cogvideox",
    "lvsa.adapters.cogvideox",
    "tests.support.tiny_hunyuan",
]
TIMEOUT = 300


def forkserver() -> ForkServerContext:
    """What starts processes that have imported everything already."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class RankFailed(AssertionError):
    """A rank raised; the message holds its traceback."""


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(rank, world, *args)`` on every rank; its results in rank order.

    The function must be importable (module level). A rank that raises, or dies, fails the call
    with its traceback; a rank that is waiting for it is ended.
    """
    context = forkserver()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(theirs, rank, world, str(store), function, args)
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    pending = {pipe: rank for rank, pipe in enumerate(pipes)}
    while pending:
        ready = wait(list(pending), timeout=TIMEOUT)
        if not ready:
            raise RankFailed(f"ranks {sorted(pending.values())} gave no result in {TIMEOUT} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pending.pop(pipe)
            try:
                ok, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise RankFailed(f"rank {rank} died without a word") from None
            if not ok:
                raise RankFailed(f"rank {rank} of {len(pipes)} raised:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    pipe: Connection, rank: int, world: int, store: str, function: Any, args: Any
) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        value = function(rank, world, *args)
        # Plain pickles: tensors travel as bytes, not as handles that die with the rank.
        pipe.send_bytes(pickle.dumps((True, value)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - whatever it was, the parent must hear of it
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
