"""A call computes; it plans nothing, reads no device, makes no table on the host."""

import inspect

import numpy as np
import pytest
import torch

from lvsa.attention import TextTokens, valid_positions
from lvsa.backends.sdpa import SDPABackend
from lvsa.exchange import EXCHANGES
from lvsa.keyframes import published
from lvsa.layout import Piece, build_layout
from lvsa.pattern import Pattern
from lvsa.shards import FrameGrid, Shards
from lvsa.tiles import Tile
from tests.support.engines import long_sparse, random_qkv
from tests.support.hot_path import Planned, hot_path, no_numpy, no_planning, planners
from tests.support.ranks import run_ranks


def call_at_all_offsets(rank, world, exchange):
    engine = long_sparse(world, exchange, rotate=True, frames=16, interval=4)
    text = TextTokens(*random_qkv(5, 99), valid=valid_positions(torch.ones(1, 5)))
    offsets = engine.pattern.n_offsets
    shards = [random_qkv(engine.local_tokens, rank + step) for step in range(offsets + 2)]
    # In one call for each tile, and with tiles in batches.
    for engine.backend in (SDPABackend(gather_bytes=1), SDPABackend()):
        with hot_path():
            for step, (q, k, v) in enumerate(shards):
                engine.step = step
                engine(q, k, v, text)
    assert engine.received.calls == 2 * (offsets + 2)


def every_exchange(rank, world):
    for exchange in EXCHANGES:
        call_at_all_offsets(rank, world, exchange)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_nothing_is_planned_in_the_hot_path_of_one_process(exchange):
    call_at_all_offsets(0, 1, exchange)


def test_nothing_is_planned_in_the_hot_path_of_ranks():
    run_ranks(2, every_exchange)


# The guards can fail, each by itself.


def build():
    return build_layout((0, 4), [Piece(0, 4, 0)], np.ones((2, 2), dtype=bool), 2)


@pytest.mark.parametrize("guard", [no_numpy, no_planning, hot_path])
def test_layouts_and_engines_cannot_be_built_under_guard(guard):
    build()
    with guard(), pytest.raises(Planned):
        build()
    with guard(), pytest.raises(Planned):
        long_sparse(1, "needed")
    build()


def test_numpy_is_taken_from_every_module_that_has_it():
    with no_numpy() as robbed:
        of_exchanges = {cls.__module__ for cls in EXCHANGES.values()}
        assert {Shards.__module__, build_layout.__module__, *of_exchanges} <= {*robbed}
        assert len(robbed) >= 8


def test_modules_that_plan_are_known():
    """But for the exchanges: those have a plan to make, and a stream to run."""
    plan = {inspect.getsourcefile(x) for x in (Pattern, published, Shards, build_layout, Tile)}
    assert plan <= planners()
    assert not {inspect.getsourcefile(cls) for cls in EXCHANGES.values()} & planners()


@pytest.mark.parametrize(
    "call",
    [
        lambda array, shards: np.stack([array]),
        lambda array, shards: array.tolist(),
        lambda array, shards: np.zeros(3),
        lambda array, shards: shards.tokens_held(0),
        lambda array, shards: shards.token_range(0),
    ],
)
def test_planning_is_seen(call):
    array, shards = np.ones(3), Shards(FrameGrid(2, 1, 2), 2)
    with no_planning(), pytest.raises(Planned):
        call(array, shards)


@pytest.mark.parametrize(
    "call",
    [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.double, bool,
     lambda x: torch.tensor([1.0]), lambda x: x[x > 0], lambda x: torch.equal(x, x)],
)  # fmt: skip
def test_synchronization_is_seen(call):
    x = torch.ones(1)
    call(x)
    with hot_path(), pytest.raises(Planned):
        call(x)
    with hot_path():
        x + x


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_plan_made_in_a_call_is_seen(exchange, monkeypatch):
    engine = long_sparse(1, exchange)
    stream = EXCHANGES[exchange].stream

    def planning(self, k, v, offset):
        self.plan(self.shards, engine.pattern.attended[offset], self.rank)
        yield from stream(self, k, v, offset)

    monkeypatch.setattr(EXCHANGES[exchange], "stream", planning)
    q, k, v = random_qkv(engine.local_tokens, 0)
    engine(q, k, v)
    with hot_path(), pytest.raises(Planned):
        engine(q, k, v)
