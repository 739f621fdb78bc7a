"""Two nodes on one machine: what crosses their link is what the plan says; parts make a machine."""

from statistics import mean
from typing import Any

import pytest
import torch
from torch import distributed as dist

from lvsa.attention import LVSAttention
from lvsa.cost import best, costs, step_cost
from lvsa.exchange import get_exchange
from lvsa.exchange.base import token_bytes
from lvsa.keyframes import published
from lvsa.launch.meshes.work import work_of_job
from lvsa.mesh import MeshSizes, VideoMesh, possible
from lvsa.shards import FrameGrid, Shards
from lvsa.studies.bench.links import Cell, LinksConfig, planned, verdict
from lvsa.studies.bench.nodes import arrived, limit, run_on, two_nodes
from lvsa.studies.bench.parts import hardware_found

GRID, HEADS, D, CALLS = FrameGrid(24, 16, 16), 4, 32, 4
PATTERN = published(24, horizon=9, rotate=True)
MESH = MeshSizes(frames=2, heads=2)
# A small video on the machine that these were measured on.
SMALL = LinksConfig(num_frames=161, size=64)
LINK = {"latency": 1e-3, "bandwidth": 1e6}
PARTS = {"attention": 1e10, "step": 0.5, "flops": 5e10}


def attended(exchange: str) -> dict[str, int]:
    """What one of four ranks received in some calls, and what came over its node's link."""
    limit(1e9)
    mesh = VideoMesh.of(MESH.device_mesh("cpu"))
    engine = LVSAttention(PATTERN, GRID, group=mesh.frames, heads=mesh.heads, exchange=exchange)
    q, k, v = (torch.randn(1, engine.local_tokens, HEADS, D) for _ in range(3))
    dist.barrier()
    before = arrived()
    for step in range(CALLS):
        engine.step = step
        engine(q, k, v)
    dist.barrier()
    received = engine.received
    return {"kv": received.kv_bytes, "heads": received.head_bytes, "link": arrived() - before}


@pytest.mark.netns
@pytest.mark.parametrize("exchange", ["needed", "all_gather"])
def test_what_crosses_the_link_is_what_the_plan_says(exchange: str) -> None:
    with two_nodes() as nodes:
        ranks = run_on(nodes, MESH.world, attended, exchange)
    table = get_exchange(exchange).received_tokens_by_offset(Shards(GRID, MESH.frames), PATTERN)
    tokens = table[[PATTERN.offset(step) for step in range(CALLS)]].sum(0)
    of_token = token_bytes(1, HEADS // MESH.heads, D, torch.float32)
    each = [int(tokens[rank // MESH.heads]) * of_token for rank in range(MESH.world)]
    assert [rank["kv"] for rank in ranks] == each
    L = GRID.tokens // MESH.world
    assert {rank["heads"] for rank in ranks} == {CALLS * 4 * L * HEADS * D * 4 // 2}
    for node in (0, 1):
        of_node = sum(each[2 * node : 2 * node + 2])
        link = min(ranks[2 * node]["link"], ranks[2 * node + 1]["link"])
        # Headers and acknowledgments are the rest; tokens for heads stay on their node.
        assert of_node < link < 1.1 * of_node + 50_000


def test_a_machine_of_parts_predicts_the_step_that_it_was_made_of() -> None:
    job = planned(SMALL)
    work = work_of_job(job)
    ranks: list[dict[str, Any]] = [
        {"parts": PARTS, "links": [{"between": LINK, "inside": LINK}]},
        {"parts": PARTS, "links": [{"between": LINK, "inside": LINK}]},
    ] * 2
    machine = hardware_found(ranks, 0, work, job)
    # Two pairs at a time share the link between the nodes.
    assert (machine.per_node, machine.between.bandwidth) == (2, 2e6) and machine.between.shared
    assert machine.inside.bandwidth == 1e6
    found = [
        step_cost(work, job.grid, matrix, MeshSizes(), "needed", machine)
        for matrix in job.pattern.attended
    ]
    assert mean(cost.seconds for cost in found if cost) == pytest.approx(0.5, rel=1e-3)


def test_the_verdict_holds_the_choice_against_the_fastest() -> None:
    job = planned(SMALL)
    work = work_of_job(job)
    machine = hardware_found([{"parts": PARTS, "links": [{"between": LINK}]}] * 2, 0, work, job)
    meshes = possible(2, job.grid, job.heads, passes=2)
    found = costs(work, job.grid, job.pattern.attended[0], meshes, machine)
    measured = {id(cost): 2.0 for cost in found} | {id(best(found)): 2.5}
    cells = [Cell(2, 100, cost, measured[id(cost)]) for cost in found]
    assert "| 2.50 |" in verdict(cells) and "| 1.25 |" in verdict(cells)
    assert cells[0].ratio == found[0].seconds / measured[id(found[0])]
