"""A step on paper: each term by hand, and what must travel between nodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lvsa.cost import Load, Work, costs, step_cost
from lvsa.errors import DivisibilityError, LVSAError
from lvsa.exchange import EXCHANGES, get_exchange
from lvsa.exchange.base import token_bytes
from lvsa.hardware import HARDWARE, find_hardware
from lvsa.keyframes import published
from lvsa.links import LINKS, Link
from lvsa.mesh import MeshSizes, possible
from lvsa.network import Network
from lvsa.pattern import dense
from lvsa.roofline import LAUNCH_SECONDS
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid, Shards
from tests.support.errors import refuses

# Two processors of a node that attend 10^6 operations a second, and links of round figures.
CHIP = replace(
    HARDWARE["h100"],
    attention=1e6,
    flops=1e6,
    matmul=0.5,
    bandwidth=1e6,
    per_node=2,
    inside=Link("in", 1000.0, 0.0),
    between=Link("out", 100.0, 0.0),
)
WORK = Work(4, 8, 3, torch.float32, 2, Load(500.0, 100.0), Load(1000.0, 0.0), 5, 10.0)
GRID = FrameGrid(8, 1, 4)
ALL = dense(8).attended[0]


def arrays(*lists):
    return [np.array(one) for one in lists]


@pytest.mark.parametrize(
    ("link", "sender", "receiver", "amount", "hops", "seconds"),
    [
        # Each rank of a node on a link of its own, both ways at once.
        ({}, [0, 1, 2], [1, 0, 3], [500, 200, 100], 1, [0.5, 0.5, 0.1, 0.1]),
        # Between nodes: what a rank sends, or receives.
        ({}, [0, 0, 1], [2, 3, 2], [10, 20, 30], 1, [0.3, 0.3, 0.4, 0.2]),
        # One link for the node: all that leaves it, or comes.
        ({"shared": True}, [0, 0, 1], [2, 3, 2], [10, 20, 30], 1, [0.6, 0.6, 0.6, 0.6]),
        # A ring over both nodes enters and leaves them by all adapters.
        ({}, [0, 1, 2, 3], [1, 2, 3, 0], [60] * 4, 3, [0.3] * 4),
        ({"shared": True}, [0, 1, 2, 3], [1, 2, 3, 0], [60] * 4, 3, [0.6] * 4),
        ({"latency": 1.0}, [0], [2], [100], 1, [2, 0, 2, 0]),
    ],
)
def test_a_transfer_takes_its_bytes_over_its_link(link, sender, receiver, amount, hops, seconds):
    hardware = replace(CHIP, between=replace(CHIP.between, **link))
    network = Network(hardware, 4)
    found = network.transfer(*arrays(sender, receiver, amount), hops)
    assert found.seconds == pytest.approx(seconds)
    assert (found.inside + found.between).sum() == sum(amount)
    here = np.array(sender) // 2 == np.array(receiver) // 2
    assert found.inside.sum() == np.array(amount)[here].sum()


def test_one_rank_computes_and_waits_for_nobody():
    cost = step_cost(WORK, GRID, ALL, MeshSizes(), "needed", CHIP)
    S = GRID.tokens
    assert cost.attention == pytest.approx(2 * 3 * 4 * 4 * 8 * S * S / 1e6)
    rest = (500 * S + 1000) / 5e5 + 100 * S / 1e6 + 5 * LAUNCH_SECONDS
    assert cost.rest == pytest.approx(2 * rest)
    assert cost.frames == cost.heads == cost.outputs == cost.inside == cost.between == 0
    assert cost.seconds == pytest.approx(cost.attention + cost.rest)


def test_frames_travel_while_others_are_attended():
    """Two ranks, one pass: half of the tokens come while the other half is attended."""
    work, mesh = replace(WORK, passes=1), MeshSizes(frames=2)
    half = 4 * 4 * 8 * (GRID.tokens // 2) ** 2 / 1e6
    comes = (GRID.tokens // 2) * token_bytes(1, 4, 8, torch.float32)
    for bandwidth in (1.0, 0.5 * comes / half, 2 * comes / half):
        hardware = replace(CHIP, inside=Link("in", bandwidth, 0.0))
        cost = step_cost(work, GRID, ALL, mesh, "needed", hardware)
        assert cost.attention == pytest.approx(3 * 2 * half)
        assert cost.frames == pytest.approx(3 * max(0, comes / bandwidth - half))
        assert (cost.inside, cost.between) == (comes, 0)


def test_heads_are_exchanged_before_and_after_the_attention():
    work, mesh = replace(WORK, passes=1), MeshSizes(heads=2)
    cost = step_cost(work, GRID, ALL, mesh, "needed", CHIP)
    # Queries, keys, values, outputs: the other rank's heads of a rank's tokens.
    moved = 4 * 16 * 2 * 8 * 4
    assert cost.heads == pytest.approx(3 * moved / 1000)
    assert (cost.inside, cost.between, cost.frames) == (moved, 0, 0)
    assert cost.attention == pytest.approx(3 * 4 * 2 * 8 * GRID.tokens**2 / 1e6)


def test_passes_at_once_take_half_and_are_brought_together():
    one = step_cost(WORK, GRID, ALL, MeshSizes(), "needed", CHIP)
    two = step_cost(WORK, GRID, ALL, MeshSizes(guidance=2), "needed", CHIP)
    assert (two.attention, two.rest) == pytest.approx((one.attention / 2, one.rest / 2))
    assert two.outputs == pytest.approx(GRID.tokens * 10 / 1000)
    # The parts of a pass first: three of four hops of a ring over two nodes.
    four = step_cost(WORK, GRID, ALL, MeshSizes(frames=4), "needed", CHIP)
    assert four.outputs == pytest.approx(2 * 3 * 8 * 10 / (100 * 2))


def test_shared_weights_come_while_the_layer_before_is_computed():
    """Half of each layer's weights is another rank's; the first layer's are waited for."""
    plain = replace(WORK, passes=1)
    own = step_cost(plain, GRID, ALL, MeshSizes(heads=2), "needed", CHIP)
    of_layer = (own.attention + own.rest) / 3
    assert own.weights == 0
    for seconds in (0.5 * of_layer, 3 * of_layer):
        # CHIP's links within a node carry 1000 bytes/s.
        shared = replace(plain, shared=3 * 2 * seconds * 1000)
        cost = step_cost(shared, GRID, ALL, MeshSizes(heads=2), "needed", CHIP)
        assert cost.weights == pytest.approx(seconds + 2 * max(0, seconds - of_layer))
        assert cost.seconds == pytest.approx(own.seconds + cost.weights)
        alone = step_cost(shared, GRID, ALL, MeshSizes(), "needed", CHIP)
        assert alone.weights == 0
    # By guidance alone ranks share as well.
    two = step_cost(replace(shared, passes=2), GRID, ALL, MeshSizes(guidance=2), "needed", CHIP)
    assert two.weights > 0


def test_what_cannot_be_told_or_divided():
    assert step_cost(WORK, GRID, ALL, MeshSizes(), "needed", HARDWARE["h100"]) is None
    assert costs(WORK, GRID, ALL, [(MeshSizes(), "needed")], HARDWARE["h100"]) == []
    with refuses(DivisibilityError, 32, 5):
        step_cost(WORK, GRID, ALL, MeshSizes(frames=5), "needed", CHIP)


def test_meshes_that_can_be():
    found = possible(8, FrameGrid(8, 1, 3), 4, ["needed", "ring"], passes=2)
    shown = [(m.guidance, m.frames, m.heads, exchange) for m, exchange in found]
    assert shown == [
        (1, 8, 1, "needed"), (1, 8, 1, "ring"), (1, 4, 2, "needed"), (1, 4, 2, "ring"),
        (1, 2, 4, "needed"), (1, 2, 4, "ring"), (2, 4, 1, "needed"), (2, 4, 1, "ring"),
        (2, 2, 2, "needed"), (2, 2, 2, "ring"), (2, 1, 4, "needed"),
    ]  # fmt: skip
    assert possible(8, FrameGrid(7, 1, 3), 4, ["needed"], passes=2) == []
    one = possible(8, FrameGrid(8, 1, 3), 4, ["ring"], passes=2, guidance=True, ulysses=2)
    assert one == [(MeshSizes(guidance=2, frames=2, heads=2), "ring")]
    assert all(mesh.guidance == 1 for mesh, _ in possible(2, GRID, 4, ["ring"]))


def test_the_fastest_stands_first_whatever_the_order():
    grid, pattern = FrameGrid(40, 6, 8), published(40, horizon=9, rotate=True)
    meshes = possible(8, grid, 4, [*EXCHANGES], passes=2)
    found = costs(WORK, grid, pattern.attended[0], meshes, CHIP)
    assert len(found) == len(meshes) > 10
    seconds = [cost.seconds for cost in found]
    assert seconds == sorted(seconds)
    assert {(cost.mesh, cost.exchange) for cost in found} == set(meshes)
    # Nothing is gained by sending more, over links this slow.
    by_name = {cost.exchange: cost for cost in found if cost.mesh.frames == 8}
    assert by_name["all_gather"].seconds > by_name["needed"].seconds


def test_bytes_between_nodes_of_wan_14b():
    """121 latent frames of 480 × 832 on two nodes of 8, from the tables of the ranks.

    Per rank, layer and pass: heads inside and needed frames between are at most 50 MB, every head
    to all 16 ranks is 242 MB.
    """
    grid, heads, D, bf16 = FrameGrid(121, 30, 52), 40, 128, torch.bfloat16
    pattern = LVSASettings(rotate_keyframes=True).pattern(121, 4, 21)
    frames = get_exchange("needed").received_tokens_by_offset(Shards(grid, 2), pattern)
    between = frames.max() * token_bytes(1, heads // 8, D, bf16)
    assert 40e6 < between <= 50e6
    # Queries, keys, values and outputs; half of the ranks are of the other node.
    ulysses = 4 * (grid.tokens / 16) * heads * D * bf16.itemsize * 8 / 16
    assert ulysses == pytest.approx(242e6, rel=0.005)
    # The model of a step counts the same, at the next length that divides by 16.
    grid = FrameGrid(122, 30, 52)
    attended = LVSASettings(rotate_keyframes=True).pattern(122, 4, 21).attended[0]
    work = Work(heads, D, 40, bf16, 2, Load(0, 0), Load(0, 0), 0, 0)
    h100 = HARDWARE["h100"]
    cost = step_cost(work, grid, attended, MeshSizes(frames=2, heads=8), "needed", h100)
    tokens = get_exchange("needed").received_tokens(Shards(grid, 2), attended).max()
    assert cost.between == tokens * token_bytes(1, heads // 8, D, bf16) < 50e6
    # Sixteen heads, since 40 do not divide among 16 ranks.
    pure = step_cost(replace(work, heads=16), grid, attended, MeshSizes(heads=16), "needed", h100)
    assert pure.between == pytest.approx(4 * (grid.tokens / 16) * 16 * D * 2 * 8 / 16)


def test_links_of_a_file(tmp_path):
    file = tmp_path / "cluster.toml"
    file.write_text(
        'like = "h100"\nname = "Mine"\nper_node = 4\nbetween = "ethernet-25"\n'
        '[inside]\nname = "cable"\nbandwidth = 1e9\nlatency = 0.001\n'
    )
    found = find_hardware(str(file))
    assert (found.name, found.per_node, found.flops) == ("Mine", 4, HARDWARE["h100"].flops)
    assert found.between is LINKS["ethernet-25"] and found.between.shared
    assert found.inside == Link("cable", 1e9, 0.001)
    for text, named in (
        ('like = "h101"', ["h101", *HARDWARE]),
        ('like = "h100"\nbetween = "string"', ["string", *LINKS]),
        ('like = "h100"\nbetween = 3', [3]),
        ('like = "h100"\nbetween = { name = "x", speed = 1 }', ["bandwidth", "speed"]),
        ('like = "h100"\nper_node = 0', ["per_node", 0]),
        ('like = "h100"\nattention = -1', ["attention", -1]),
        ('like = "h100"\n[inside]\nname = "x"\nbandwidth = 0\nlatency = 0', ["x", 0]),
    ):
        file.write_text(text)
        with refuses(LVSAError, *named):
            find_hardware(str(file))


def test_every_link_has_its_source():
    for link in LINKS.values():
        assert link.source and 1e-6 < link.latency < 1e-4 and link.bandwidth > 1e9
