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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from torch import distributed as dist

from lvsa.adapters.install.enable import enable
from lvsa.cost import StepCost, best, costs
from lvsa.launch.arguments import parse
from lvsa.launch.job import Job, make_job
from lvsa.launch.loading.models import ASSETS
from lvsa.launch.meshes.ranking import described
from lvsa.launch.meshes.work import work_of_job
from lvsa.launch.meter import StepTimer
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import versions, write_record
from lvsa.mesh import MeshSizes, possible
from lvsa.studies.bench.nodes import limit, run_on, two_nodes
from lvsa.studies.bench.parts import attention_rate, hardware_found, link_rate, peers, product_rate

logger = logging.getLogger("lvsa.studies.bench.links")
CPU = torch.device("cpu")
MODEL = "tiny-wan"


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
        "attention": attention_rate(job),
        "step": median(steps),
        "flops": product_rate(job),
    }
    made = {mesh: mesh.device_mesh("cpu") for mesh, _ in meshes}
    for rate in config.rates:
        dist.barrier()
        # What has left a rank may still wait in its node's queue, which a new rate would drop.
        time.sleep(1)
        if dist.get_rank() % (world // 2) == 0:
            limit(rate * 1e6)
        dist.barrier()
        found["links"].append({name: link_rate(*pair) for name, pair in peers(world, rate)})
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
