"""The parts of a step on this machine, each measured alone, and a machine that is made of them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import distributed as dist

from lvsa.attention import LVSAttention
from lvsa.cost import Work
from lvsa.hardware import Hardware, hardware_of
from lvsa.launch.job import Job
from lvsa.roofline import LAUNCH_SECONDS

TRIALS = 5
"""Timed repeats of each part."""


def attention_rate(job: Job) -> float:
    """FLOP/s of the video's attention on this rank alone, all heads."""
    engine = LVSAttention(job.pattern, job.grid)
    q, k, v = (torch.randn(1, job.grid.tokens, job.heads, job.head_dim) for _ in range(3))
    pairs = engine.exchange.plans[0].pairs
    return 4.0 * job.heads * job.head_dim * pairs / timed(lambda: engine(q, k, v))


def product_rate(job: Job) -> float:
    """FLOP/s of a matrix product of the model's size."""
    channels = job.heads * job.head_dim
    x, w = torch.randn(4096, channels), torch.randn(channels, 3 * channels)
    return 2.0 * x.shape[0] * w.numel() / timed(lambda: x @ w)


def peers(world: int, rate: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """By name of a link: with whom this rank measures it, and bytes that each sends."""
    rank, half = dist.get_rank(), world // 2
    # About 0.3 s for all pairs, which share the link between the nodes.
    yield "between", ((rank + half) % world, round(rate * 1e6 / 8 * 0.3 / half))
    if world > 2:
        yield "inside", (rank ^ 1, 8_000_000)


def link_rate(peer: int, amount: int) -> dict[str, float]:
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

        return timed(both)

    latency = swap(1)
    return {"latency": latency, "bandwidth": amount / (swap(amount // 4) - latency)}


def timed(call: Callable[[], object]) -> float:
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
