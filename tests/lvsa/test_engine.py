"""One engine for several patterns and grids, and what it refuses."""

import gc
import weakref

import pytest
import torch
from torch import distributed as dist

from lvsa.attention import TABLES_KEPT, LVSAttention, TextTokens
from lvsa.errors import DivisibilityError, LVSAError, RankMismatch, SequenceError
from lvsa.exchange import EXCHANGES
from lvsa.keyframes import even, published
from lvsa.pattern import dense
from lvsa.shards import FrameGrid
from tests.support.engines import expected, random_qkv
from tests.support.errors import refuses
from tests.support.oracle import placed, relative_error
from tests.support.ranks import run_ranks

OPTIONS = {"interval": 3, "window": 1, "n_first": 1, "rotate": True}
EVERY_EXCHANGE = pytest.mark.parametrize("exchange", EXCHANGES)


def configurations():
    """Lengths, sizes and patterns of several videos, and A(f) by [offset][f] of each."""
    return [
        (published(6, **OPTIONS), FrameGrid(6, 2, 2), placed("published", 6, **OPTIONS)),
        (published(9, **OPTIONS), FrameGrid(9, 1, 4), placed("published", 9, **OPTIONS)),
        (even(9, **OPTIONS), FrameGrid(9, 1, 4), placed("even", 9, **OPTIONS)),
        (published(6, **OPTIONS), FrameGrid(6, 2, 1), placed("published", 6, **OPTIONS)),
    ]


def by_turns(rank, world, exchange):
    """Largest error over videos that come in turn, each for some steps, some of them again."""
    videos = configurations()
    engine = LVSAttention(*videos[0][:2], group=dist.group.WORLD, exchange=exchange)
    worst = []
    for turn, video in enumerate((0, 1, 2, 3, 1, 0, 2)):
        pattern, grid, sets = videos[video]
        engine.configure(pattern, grid)
        assert (engine.pattern, engine.grid) == (pattern, grid)
        assert engine.local_tokens == grid.tokens // world
        part = slice(*engine.shards.token_range(rank))
        for engine.step in (turn, turn + 1):
            qkv = random_qkv(grid.tokens, turn, dtype=torch.float64)
            out, _ = engine(*(x[:, part] for x in qkv))
            whole, _ = expected(qkv, sets[engine.step % len(sets)], grid.tokens_per_frame)
            worst.append(relative_error(out, whole[:, part]))
    return max(worst)


@EVERY_EXCHANGE
@pytest.mark.parametrize("world", [1, 2])
def test_one_engine_serves_several_videos(world, exchange):
    assert max(run_ranks(world, by_turns, exchange)) < 1e-10


@EVERY_EXCHANGE
def test_the_tables_of_a_few_videos_are_kept(exchange):
    lengths = range(5, 5 + TABLES_KEPT + 1)
    videos = [(published(T, **OPTIONS), FrameGrid(T, 1, 2)) for T in lengths]
    engine = LVSAttention(*videos[0], exchange=exchange)
    tables = [weakref.ref(engine.exchange)]
    for pattern, grid in videos[1:TABLES_KEPT]:
        engine.configure(pattern, grid)
        tables.append(weakref.ref(engine.exchange))
    gc.collect()
    assert all(kept() is not None for kept in tables)
    # An equal pattern made again finds them, and counts as used last.
    engine.configure(published(lengths[0], **OPTIONS), videos[0][1])
    assert engine.exchange is tables[0]()
    engine.configure(*videos[TABLES_KEPT])
    gc.collect()
    assert [kept() is not None for kept in tables] == [True, False] + [True] * (TABLES_KEPT - 2)


def test_a_video_that_is_refused_leaves_the_engine_as_it_was():
    pattern, grid = published(6, **OPTIONS), FrameGrid(6, 1, 4)
    engine = LVSAttention(pattern, grid)
    exchange = engine.exchange
    with refuses(LVSAError, 6, 7):
        engine.configure(pattern, FrameGrid(7, 1, 4))
    assert (engine.pattern, engine.grid, engine.exchange) == (pattern, grid, exchange)
    assert engine(*random_qkv(24, 0))[0].shape == (1, 24, 2, 8)


def test_pattern_and_grid_must_be_of_one_length():
    with refuses(LVSAError, 5, 6):
        LVSAttention(dense(5), FrameGrid(6, 1, 1))


def refused_alike(rank, world):
    """On ranks too: tokens that do not divide, and one rank that was given something else."""
    group = dist.group.WORLD
    engine = LVSAttention(dense(2), FrameGrid(2, 1, 3), group=group)
    with refuses(DivisibilityError, 3, 5, 15, world):
        engine.configure(dense(3), FrameGrid(3, 1, 5))
    assert engine.grid.frames == 2
    mine = dense(4) if rank else published(4, interval=4, window=0)
    with refuses(RankMismatch, "pattern", mine.digest, dense(4).digest):
        LVSAttention(mine, FrameGrid(4, 1, 2), group=group)
    exchange = "needed" if rank else "ring"
    with refuses(RankMismatch, "exchange", "needed", "ring"):
        LVSAttention(dense(4), FrameGrid(4, 1, 2), group=group, exchange=exchange)
    return engine(*random_qkv(3, rank))[0].shape


def test_ranks_refuse_together():
    assert run_ranks(2, refused_alike) == [(1, 3, 2, 8)] * 2


@pytest.mark.parametrize("which", [0, 1, 2])
def test_another_number_of_tokens_is_an_error(which):
    engine = LVSAttention(dense(3), FrameGrid(3, 2, 2))
    qkv = random_qkv(12, 0)
    qkv[which] = qkv[which][:, :11]
    with refuses(SequenceError, (1, 11, 2, 8), 3, 4, 12):
        engine(*qkv)
    qkv[which] = qkv[which].flatten(2)
    with refuses(SequenceError, (1, 11, 16)):
        engine(*qkv)


@pytest.mark.parametrize("names", [{"exchange": "mesh"}, {"backend": "sdap"}], ids=str)
def test_unknown_names(names):
    (name,) = names.values()
    with refuses(LVSAError, name):
        LVSAttention(dense(3), FrameGrid(3, 1, 1), **names)


# Gradients: kernels return none for the log-sum-exp, so that those of the rest would be wrong.


@pytest.mark.parametrize("which", range(6), ids=["q", "k", "v", "text-q", "text-k", "text-v"])
def test_gradients_are_refused_where_they_are_asked_for(which):
    engine = LVSAttention(published(6, **OPTIONS), FrameGrid(6, 1, 2))
    inputs = [*random_qkv(12, 0), *random_qkv(5, 1)]
    qkv, text = inputs[:3], TextTokens(*inputs[3:])
    plain, text_out = engine(*qkv, text)
    inputs[which].requires_grad_()
    with refuses(LVSAError, "no_grad", "inference_mode"):
        engine(*qkv, text)
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            again = engine(*qkv, text)
            assert torch.equal(again[0], plain)
            assert torch.equal(again[1], text_out)
            assert not again[0].requires_grad


def test_gradients_are_not_refused_where_nobody_asks():
    engine = LVSAttention(published(6, **OPTIONS), FrameGrid(6, 1, 2))
    assert torch.is_grad_enabled()
    assert not engine(*random_qkv(12, 0))[0].requires_grad
