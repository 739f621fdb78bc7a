"""Exchanges by table: the same pairs for every world size, and what travels for them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lvsa.errors import LVSAError
from lvsa.exchange import EXCHANGES, get_exchange
from lvsa.exchange.base import own_pairs, token_bytes
from lvsa.exchange.ring import Ring, reach
from lvsa.keyframes import even, published
from lvsa.shards import FrameGrid, Shards
from tests.support.cuts import cuts
from tests.support.errors import refuses
from tests.support.oracle import placed
from tests.support.patterns import as_sets
from tests.support.transfers import deliver

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = sorted(EXCHANGES)


def plans_of(name, shards, matrix):
    return [EXCHANGES[name].plan(shards, matrix, rank) for rank in range(shards.world)]


def pairs_of(plan, shards):
    """[L, S] how often the plan's blocks attend each (local query, key of the sequence)."""
    count = np.zeros((shards.local_tokens, shards.grid.tokens), dtype=int)
    for block in plan.blocks:
        token = np.full(block.tokens, -1)
        for piece in block.pieces:
            span = piece.stop - piece.start
            token[piece.position : piece.position + span] = np.arange(piece.start, piece.stop)
        for tile in block.layout.tiles:
            for start, stop in tile.keys:
                keys = token[start:stop]
                assert len(keys) == stop - start, "the range ends beyond the buffer"
                assert (keys >= 0).all(), "a range of the buffer that holds nothing is attended"
                count[tile.start : tile.stop, keys] += 1
    return count


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(cut=cuts())
def test_every_attended_pair_once_for_every_world_size(name, cut):
    expected = cut.mask.astype(int)
    plans = plans_of(name, cut.shards, cut.matrix)
    got = np.concatenate([pairs_of(plan, cut.shards) for plan in plans])
    assert np.array_equal(got, expected)
    assert sum(plan.pairs for plan in plans) == expected.sum()


@pytest.mark.parametrize("name", NAMES)
def test_frames_attended_are_the_same_on_1_to_16_ranks(name):
    """The promise in one table: 21 attended frames at one rank are 21 at sixteen."""
    pattern = published(81, horizon=21, rotate=True)
    expected = placed("published", 81, horizon=21, rotate=True)
    for world in range(1, 17):
        P = world // int(np.gcd(81, world))
        shards = Shards(FrameGrid(81, 1, P), world)
        for offset in (0, 4):
            plans = plans_of(name, shards, pattern.attended[offset])
            pairs = np.concatenate([pairs_of(plan, shards) for plan in plans])
            frame_pairs = pairs.reshape(81, P, 81, P)
            assert (frame_pairs == frame_pairs[:, :1, :, :1]).all(), "frames are whole or absent"
            assert as_sets(frame_pairs[:, 0, :, 0]) == expected[offset]


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(cut=cuts())
def test_tokens_received_are_those_of_the_plans(name, cut):
    exchange, shards, pattern = EXCHANGES[name], cut.shards, cut.pattern
    planned = [plan.received_tokens for plan in plans_of(name, shards, cut.matrix)]
    assert exchange.received_tokens(shards, cut.matrix).tolist() == planned
    table = exchange.received_tokens_by_offset(shards, pattern)
    assert table.shape == (pattern.n_offsets, shards.world)
    assert table[cut.offset].tolist() == planned
    first = exchange.received_tokens_by_offset(shards, pattern, offsets=cut.offset + 1)
    assert np.array_equal(first, table[: cut.offset + 1])


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(cut=cuts())
def test_phases_are_what_the_plans_move_and_attend(name, cut):
    """By table alone, for all ranks at once: what costs are reckoned with."""
    plans = plans_of(name, cut.shards, cut.matrix)
    phases = EXCHANGES[name].phases(cut.shards, cut.matrix)
    own = own_pairs(cut.shards, cut.matrix)
    assert own.tolist() == [plan.blocks[0].layout.pairs for plan in plans]
    attended = own + sum(phase.pairs for phase in phases)
    assert attended.tolist() == [plan.pairs for plan in plans]
    if name == "all_gather":
        return
    moved = np.zeros((len(phases), cut.shards.world, cut.shards.world), dtype=int)
    for number, phase in enumerate(phases):
        assert phase.hops == 1
        np.add.at(moved[number], (phase.sender, phase.receiver), phase.tokens)
    planned = np.zeros_like(moved)
    for rank, plan in enumerate(plans):
        turns = getattr(plan, "ring", None) or plan
        for number, turn in enumerate(getattr(turns, "steps", [turns])):
            for part in turn.sends:
                planned[number, rank, part.peer] += part.tokens
    assert np.array_equal(moved, planned)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(cut=cuts(most_ranks=1))
def test_nothing_is_received_on_one_rank(name, cut):
    (plan,) = plans_of(name, cut.shards, cut.matrix)
    assert len(plan.blocks) == 1
    assert plan.received_tokens == 0


@PROPERTY
@given(cuts())
def test_needed_moves_the_least_that_is_exact(cut):
    moved = EXCHANGES["needed"].received_tokens(cut.shards, cut.matrix)
    for rank, received in enumerate(moved):
        attended = cut.keys_of(rank)
        attended[slice(*cut.shards.token_range(rank))] = False
        assert received == attended.sum()


@pytest.mark.parametrize("name", ["needed", "ring"])
@PROPERTY
@given(cut=cuts())
def test_transfers_bring_what_the_plan_says_to_where_it_says(name, cut):
    plans = plans_of(name, cut.shards, cut.matrix)
    for plan, turns in zip(plans, deliver(cut.shards, plans), strict=True):
        assert sum(len(turn.arriving) for turn in turns) == plan.received_tokens
        assert [t.block for t in turns if t.block] == [*range(1, len(plan.blocks))]
        for turn in turns:
            for start, stop, position in plan.blocks[turn.block].pieces if turn.block else ():
                held = turn.arriving[position : position + stop - start]
                assert held.tolist() == [*range(start, stop)]
            # Two messages at most from one rank to another.
            peers = [part.peer for part in turn.sends]
            assert max(map(peers.count, peers), default=0) <= 2


@PROPERTY
@given(cuts(least_ranks=2))
def test_needed_is_a_ring_where_every_rank_attends_everything(cut):
    everything = all(cut.keys_of(rank).all() for rank in range(cut.shards.world))
    for rank, plan in enumerate(plans_of("needed", cut.shards, cut.matrix)):
        assert (plan.ring is not None) == everything
        if everything:
            ring = Ring.plan(cut.shards, cut.matrix, rank)
            assert plan.ring.steps == ring.steps
            assert plan.ring.blocks is plan.blocks


@PROPERTY
@given(cuts(least_ranks=2))
def test_needed_packs_what_all_attend_once_and_lays_it_first(cut):
    P, anchors = cut.shards.grid.tokens_per_frame, cut.matrix.all(0)
    for rank, plan in enumerate(plans_of("needed", cut.shards, cut.matrix)):
        if plan.ring is not None:
            continue
        tokens = plan.rows.numpy() + cut.shards.token_range(rank)[0]
        held = np.arange(*cut.shards.token_range(rank))
        of_all = held[anchors[held // P]]
        assert tokens[: len(of_all)].tolist() == of_all.tolist()
        assert not anchors[tokens[len(of_all) :] // P].any()
        for block in plan.blocks[1:]:
            first = [bool(anchors[piece.start // P]) for piece in block.pieces]
            assert first == sorted(first, reverse=True)


def test_a_window_less_its_anchors_is_one_range_of_what_arrives():
    pattern = published(81, horizon=21, rotate=True)
    shards = Shards(FrameGrid(81, 2, 4), 8)
    for offset, matrix in enumerate(pattern.attended):
        for rank, plan in enumerate(plans_of("needed", shards, matrix)):
            layout = plan.blocks[1].layout
            tiles = [t for run in layout.runs for t in [run.first]]
            tiles += [t for group in layout.groups for t in group.tiles]
            assert len(layout.common) == 1, (offset, rank)
            assert all(len(tile.keys) == 1 for tile in tiles), (offset, rank)


@PROPERTY
@given(cuts(most_ranks=9))
def test_a_frame_travels_the_fewest_hops_to_its_readers(cut):
    N, shards, P = cut.shards.world, cut.shards, cut.shards.grid.tokens_per_frame
    for owner, (rights, lefts) in enumerate(reach(shards, cut.matrix)):
        for frame in range(*shards.frame_range(owner)):
            keys = slice(frame * P, (frame + 1) * P)
            readers = [d for d in range(1, N) if cut.keys_of((owner + d) % N)[keys].any()]
            ways = [
                (right + left, max(right, left))
                for right in range(N)
                for left in range(N - right)
                if all(d <= right or N - d <= left for d in readers)
            ]
            right, left = int(rights[frame]), int(lefts[frame])
            assert (right + left, max(right, left)) == min(ways)
            assert all(d <= right or N - d <= left for d in readers)


@PROPERTY
@given(cuts(least_ranks=2))
def test_the_ring_only_knows_neighbors_and_passes_on_the_beginning_of_what_came(cut):
    N = cut.shards.world
    for rank, plan in enumerate(plans_of("ring", cut.shards, cut.matrix)):
        came = None
        for step in plan.steps:
            neighbors = [(rank + 1) % N, (rank - 1) % N]
            for part in (*step.sends, *step.receives):
                assert part.peer in neighbors
            if came is not None:
                assert {part.start for part in step.sends} <= {part.start for part in came}
            came = step.receives


@pytest.mark.parametrize("make", [published, even])
@pytest.mark.parametrize("frames", [41, 81, 121])
@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_the_ring_moves_no_more_than_needed_does(make, frames, world):
    """A frame's readers are neighbors, or everybody: nobody passes on what is not its own need."""
    pattern = make(frames, horizon=21, rotate=True)
    shards = Shards(FrameGrid(frames, 4, 4), world)
    ring, needed = (
        EXCHANGES[name].received_tokens_by_offset(shards, pattern) for name in ("ring", "needed")
    )
    assert (ring == needed).all()


def test_dense_attention_goes_half_the_way_round_to_either_side():
    shards = Shards(FrameGrid(8, 1, 2), 8)
    (plan, *_) = plans_of("ring", shards, np.ones((8, 8), dtype=bool))
    assert len(plan.steps) == 4
    assert len(plan.rows) == shards.local_tokens, "packed once for both ways"


@PROPERTY
@given(cuts())
def test_ring_and_needed_never_move_more_than_all_gather(cut):
    needed, ring, everything = (
        EXCHANGES[name].received_tokens_by_offset(cut.shards, cut.pattern)
        for name in ("needed", "ring", "all_gather")
    )
    assert (needed <= ring).all()
    assert (ring <= everything).all()


def test_known_bytes_of_a_long_video():
    """Wan 1.3B, 81 latent frames of 1560 tokens, bfloat16: MB per rank and layer."""
    token = token_bytes(batch=1, heads=12, head_dim=128, dtype=torch.bfloat16)
    pattern = published(81, horizon=21)
    grid = FrameGrid(81, 30, 52)
    for world, gathered, needed in ((2, 388, 101), (4, 582, 151), (8, 679, 176)):
        shards = Shards(grid, world)
        mean = {
            name: EXCHANGES[name].received_tokens_by_offset(shards, pattern).mean() * token / 1e6
            for name in ("all_gather", "needed")
        }
        assert round(mean["all_gather"]) == gathered
        assert round(mean["needed"]) == needed


def test_unknown_exchange_lists_the_known_ones():
    with refuses(LVSAError, "mesh", "all_gather", "ring", "needed"):
        get_exchange("mesh")
    for name in NAMES:
        assert get_exchange(name) is EXCHANGES[name]
        assert EXCHANGES[name].name == name


def test_a_plan_without_arrivals_still_has_its_own_block():
    """Ring of one reader: the others' turns carry no block."""
    matrix = np.eye(6, dtype=bool)
    matrix[5] = True
    shards = Shards(FrameGrid(6, 1, 2), 6)
    for rank in range(5):
        plan = Ring.plan(shards, matrix, rank)
        assert len(plan.blocks) == 1
        assert all(step.block is None for step in plan.steps)
    # From 2, 3 and 4 on one side, from 0 and 1 on the other.
    assert [len(block.pieces) for block in Ring.plan(shards, matrix, 5).blocks] == [1, 2, 2, 1]
