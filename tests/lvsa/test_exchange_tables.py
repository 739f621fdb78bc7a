"""Exchanges by table: the same pairs for every world size, and what travels for them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lvsa.errors import LVSAError
from lvsa.exchange import EXCHANGES, get_exchange
from lvsa.exchange.base import token_bytes
from lvsa.exchange.ring import Ring, hops
from lvsa.keyframes import published
from lvsa.shards import FrameGrid, Shards
from tests.support.cuts import cuts
from tests.support.errors import refuses
from tests.support.oracle import placed
from tests.support.patterns import as_sets

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


@PROPERTY
@given(cuts())
def test_needed_sends_what_the_others_expect(cut):
    shards = cut.shards
    plans = plans_of("needed", shards, cut.matrix)
    assert len({plan.travels for plan in plans}) == 1, "all call the collective, or none"
    assert plans[0].travels == any(plan.received_tokens for plan in plans)
    for owner, plan in enumerate(plans):
        first = shards.token_range(owner)[0]
        leaving = [first + row for row in plan.rows.tolist()]
        for reader, size in enumerate(plan.send_sizes):
            assert size == plans[reader].receive_sizes[owner]
            sent, leaving = leaving[:size], leaving[size:]
            arrived = [
                t
                for block in plans[reader].blocks[1:]
                for piece in block.pieces
                for t in range(piece.start, piece.stop)
                if first <= t < first + shards.local_tokens
            ]
            assert sent == arrived
        assert not leaving


@PROPERTY
@given(cuts())
def test_ring_moves_a_shard_only_towards_its_readers(cut):
    N, shards = cut.shards.world, cut.shards
    plans = plans_of("ring", shards, cut.matrix)
    steps = len(plans[0].steps)
    for owner in range(N):
        keys = slice(*shards.token_range(owner))
        readers = [r for r in range(N) if r != owner and cut.keys_of(r)[keys].any()]
        last = max([(reader - owner) % N for reader in readers], default=0)
        assert hops(shards, cut.matrix)[owner] == last
        for s in range(1, steps + 1):
            reader, sender = (owner + s) % N, (owner + s - 1) % N
            assert plans[reader].steps[s - 1].receives == (s <= last)
            assert plans[sender].steps[s - 1].sends == (s <= last)
            assert (plans[reader].steps[s - 1].block is not None) == (reader in readers)


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
    assert len(Ring.plan(shards, matrix, 5).blocks) == 6
