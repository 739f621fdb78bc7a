"""A denoising step on two nodes over a slow link, measured and predicted. Needs root and iproute2.

    python studies/bench/links.py --rates 50 100 300 1000 --ranks 2 4

Nodes are network namespaces of this machine (`lvsa.studies.bench.nodes`). For every rate, every
mesh with every exchange makes a few steps of the model that comes along. The same steps are
predicted by `lvsa.cost`, from what is measured of each part alone: attention, a step of a video as
long as a shard while the other ranks do the same, and transfers within and between nodes.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from torch import distributed as dist

from lvsa.adapters.install.enable import enable
from lvsa.attention import LVSAttention
from lvsa.cost import StepCost, Work, best, costs, possible
from lvsa.hardware import Hardware, hardware_of
from lvsa.launch.arguments import parse
from lvsa.launch.job import Job, make_job
from lvsa.launch.loading.models import ASSETS
from lvsa.launch.meshes.ranking import described
from lvsa.launch.meshes.work import work_of_job
from lvsa.launch.meter import StepTimer
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import versions, write_record
from lvsa.mesh import MeshSizes
from lvsa.roofline import LAUNCH_SECONDS
from lvsa.studies.bench.nodes import limit, run_on, two_nodes

logger = logging.getLogger("lvsa.studies.bench.links")
CPU = torch.device("cpu")
MODEL = "tiny-wan"
TRIALS = 5
"""Timed repeats of each part."""


@dataclass(frozen=True)
class LinksConfig:
    """Steps over slow links, measured and predicted. Lists are combined, each with each."""

    rates: tuple[int, ...] = (50, 100, 300, 1000)
    """Mbit/s of the link between the nodes, each way."""
    ranks: tuple[int, ...] = (2, 4)
    """Ranks, half of them on each node."""
    num_frames: int = 481
    """Video frames."""
    size: int = 128
    """Height and width, pixels."""
    steps: int = 3
    """Denoising steps; the first is not counted."""
    output_dir: Path = Path("outputs/links")
    """Folder for links.json."""


def planned(config: LinksConfig) -> Job:
    """The video that is made."""
    size = ["--num-frames", config.num_frames, "--height", config.size, "--width", config.size]
    given = ["--model", MODEL, "--prompt", "x", *size, "--steps", config.steps, "--lvsa"]
    return make_job(parse([*map(str, given), "--rotate-keyframes"]), 1, CPU)


def alone(config: LinksConfig, world: int) -> Job:
    """A video of about as many tokens as a rank holds."""
    latent = planned(config).grid.frames // world
    return planned(replace(config, num_frames=4 * (latent - 1) + 1))


def measure(config: LinksConfig, meshes: Sequence[tuple[MeshSizes, str]]) -> dict[str, Any]:
    """What one of the ranks measures.

    Returns:
        parts: seconds of attention, of a step and of a matrix product, FLOP/s.
        links: for each rate bandwidth and latency of transfers between nodes, and within.
        seconds: for each rate and mesh those of every step but the first.
    """
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(ASSETS / MODEL)
    pipe.set_progress_bar_config(disable=True)
    job, world = planned(config), dist.get_world_size()
    found: dict[str, Any] = {"links": [], "seconds": []}
    apart = MeshSizes(replica=world).device_mesh("cpu")
    steps = _steps(pipe, alone(config, world), apart, "needed")
    found["parts"] = {
        "attention": _attention(job),
        "step": median(steps),
        "flops": _product(job),
    }
    made = {mesh: mesh.device_mesh("cpu") for mesh, _ in meshes}
    for rate in config.rates:
        dist.barrier()
        # What has left a rank may still wait in its node's queue, which a new rate would drop.
        time.sleep(1)
        if dist.get_rank() % (world // 2) == 0:
            limit(rate * 1e6)
        dist.barrier()
        found["links"].append({name: _link(*pair) for name, pair in _pairs(world, rate)})
        found["seconds"].append([_steps(pipe, job, made[m], exchange) for m, exchange in meshes])
    return found


def _steps(pipe: Any, job: Job, mesh: Any, exchange: str) -> list[float]:
    """Seconds of denoising steps, without the first."""
    request, timer = job.request, StepTimer(CPU)
    with enable(pipe, pattern=job.pattern, exchange=exchange, mesh=mesh) as session:
        session.clock.listeners.append(timer)
        pipe(
            prompt="a red circle",
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )
    return timer.seconds()[1:]


def _attention(job: Job) -> float:
    """FLOP/s of the video's attention on this rank alone, all heads."""
    engine = LVSAttention(job.pattern, job.grid)
    q, k, v = (torch.randn(1, job.grid.tokens, job.heads, job.head_dim) for _ in range(3))
    pairs = engine.exchange.plans[0].pairs
    return 4.0 * job.heads * job.head_dim * pairs / _timed(lambda: engine(q, k, v))


def _product(job: Job) -> float:
    """FLOP/s of a matrix product of the model's size."""
    channels = job.heads * job.head_dim
    x, w = torch.randn(4096, channels), torch.randn(channels, 3 * channels)
    return 2.0 * x.shape[0] * w.numel() / _timed(lambda: x @ w)


def _pairs(world: int, rate: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """By name of a link: with whom this rank measures it, and bytes that each sends."""
    rank, half = dist.get_rank(), world // 2
    # About 0.3 s for all pairs, which share the link between the nodes.
    yield "between", ((rank + half) % world, round(rate * 1e6 / 8 * 0.3 / half))
    if world > 2:
        yield "inside", (rank ^ 1, 8_000_000)


def _link(peer: int, amount: int) -> dict[str, float]:
    """Bandwidth, bytes/s, and latency, seconds, of transfers in both directions at a time."""
    dist.barrier()

    def swap(count: int) -> float:
        leaving, arriving = torch.zeros(count), torch.empty(count)

        def both() -> None:
            works = dist.batch_isend_irecv(
                [dist.P2POp(dist.isend, leaving, peer), dist.P2POp(dist.irecv, arriving, peer)]
            )
            for work in works:
                work.wait()

        return _timed(both)

    latency = swap(1)
    return {"latency": latency, "bandwidth": amount / (swap(amount // 4) - latency)}


def _timed(call: Callable[[], object]) -> float:
    """Median of the seconds of some calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def hardware_found(
    ranks: Sequence[Mapping[str, Any]], number: int, work: Work, job: Job
) -> Hardware:
    """This machine as `lvsa.hardware` describes one, of what the ranks measured.

    Args:
        ranks: results of `measure`.
        number: of the rate.
        work: of the model.
        job: the video of which each made a step alone.
    """
    each = len(ranks) // 2
    parts = {
        name: median(r["parts"][name] for r in ranks) for name in ("attention", "step", "flops")
    }
    S = job.grid.tokens
    attention = 4.0 * work.heads * work.head_dim * S**2 * job.pattern.density / parts["attention"]
    rest = parts["step"] / work.passes - work.layers * attention
    products = (work.token.flops * S + work.once.flops) / parts["flops"]
    others = max(1e-9, rest - products - work.launches * LAUNCH_SECONDS)

    def link(name: str, shared: bool) -> dict[str, Any]:
        found = [r["links"][number][name] for r in ranks if r["links"][number].get(name)]
        # Two ranks are on a node each, where nothing travels.
        found = found or [{"latency": 0.0, "bandwidth": 1e12}]
        return {
            "name": f"{name} nodes",
            "shared": shared,
            "latency": median(one["latency"] for one in found),
            # Of a link that is shared, what all its pairs had together.
            "bandwidth": median(one["bandwidth"] for one in found) * (each if shared else 1),
        }

    return hardware_of(
        "this machine",
        {
            "name": f"a core of {len(ranks)} ranks",
            "architecture": "cpu",
            "processors": 1,
            "flops": parts["flops"],
            "matmul": 1.0,
            "attention": parts["attention"],
            "bandwidth": (work.token.bytes * S + work.once.bytes) / others,
            "memory": 1e9,
            "per_node": len(ranks) // 2,
            "inside": link("inside", shared=False),
            "between": link("between", shared=True),
        },
    )


@dataclass(frozen=True)
class Cell:
    """A mesh with an exchange at one rate: seconds of a step."""

    ranks: int
    rate: int
    cost: StepCost
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.cost.seconds / self.measured

    def __str__(self) -> str:
        return (
            f"| {self.ranks} | {self.rate} | {described(self.cost)} | {self.measured:.2f} | "
            f"{self.cost.seconds:.2f} | {self.ratio:.2f} |"
        )


HEAD = "| ranks | Mbit/s | mesh | measured, s | predicted, s | ratio |\n|--:|--:|---|--:|--:|--:|"


def verdict(cells: Sequence[Cell]) -> str:
    """What is chosen by prediction at one rate, beside the fastest that was measured."""
    chosen = best([cell.cost for cell in cells])
    taken = next(cell for cell in cells if cell.cost is chosen)
    fastest = min(cells, key=lambda cell: cell.measured)
    return (
        f"| {taken.ranks} | {taken.rate} | {described(chosen)} | {taken.measured:.2f} | "
        f"{described(fastest.cost)} | {fastest.measured:.2f} | "
        f"{taken.measured / fastest.measured:.2f} |"
    )


def links(config: LinksConfig) -> list[Cell]:
    """Measures and predicts all cells, says them as tables and writes links.json."""
    job = planned(config)
    work, cells, verdicts, machines = work_of_job(job), [], [], []
    attended = job.pattern.attended[0]
    for world in config.ranks:
        meshes = possible(world, job.grid, job.heads, passes=work.passes)
        with two_nodes() as nodes:
            ranks = run_on(nodes, world, measure, config, meshes)
        for number, rate in enumerate(config.rates):
            hardware = hardware_found(ranks, number, work, alone(config, world))
            machines.append(asdict(hardware))
            predicted = costs(work, job.grid, attended, meshes, hardware)
            # Every step is as long as on its slowest rank.
            slowest = np.max([rank["seconds"][number] for rank in ranks], axis=0)
            measured = dict(zip(meshes, np.median(slowest, axis=1).tolist(), strict=True))
            here = [Cell(world, rate, c, measured[c.mesh, c.exchange]) for c in predicted]
            cells += here
            verdicts.append(verdict(here))
    within = [cell for cell in cells if 0.7 <= cell.ratio <= 1.4]
    table = "\n".join([HEAD, *map(str, cells)])
    logger.info("%s\n\nwithin 0.7 to 1.4: %d of %d", table, len(within), len(cells))
    logger.info("chosen, s; fastest, s; ratio\n%s", "\n".join(verdicts))
    write_record(
        config.output_dir / "links.json",
        {
            "versions": versions(),
            "hardware": machines,
            "cells": [
                {**asdict(c.cost), "ranks": c.ranks, "rate": c.rate, "measured": c.measured}
                for c in cells
            ],
        },
    )
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: links(tyro.cli(LinksConfig, args=argv))))


if __name__ == "__main__":
    # What ranks are handed has to come from a module that they can import.
    from lvsa.studies.bench import links as by_name

    by_name.main()
