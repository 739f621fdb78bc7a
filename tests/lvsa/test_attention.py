"""The promise: the same attention for every number of ranks, every exchange, equal to one dense
masked softmax."""

import itertools

import pytest
import torch
from torch import distributed as dist

from lvsa.attention import LVSAttention, TextTokens
from lvsa.exchange import EXCHANGES
from lvsa.keyframes import published
from lvsa.pattern import dense
from lvsa.shards import FrameGrid
from tests.support.engines import expected, padded_text, random_qkv
from tests.support.oracle import placed, relative_error
from tests.support.own_patterns import OWN_PATTERNS
from tests.support.ranks import run_ranks

T = 12
OPTIONS = {"interval": 4, "window": 1, "n_first": 1}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}
WORLDS = pytest.mark.parametrize("world", [1, 2, 3, 4])


def attend_step(engine, step, sets, seed, B=2, dtype=torch.float64):
    """Largest relative error of this rank's part at one step; bytes received are checked."""
    grid = engine.grid
    qkv = random_qkv(grid.tokens, seed, B, dtype=dtype)
    part = slice(*engine.shards.token_range(engine.rank))
    engine.step = step
    before = engine.received.kv_bytes
    out, text_out = engine(*(x[:, part] for x in qkv))
    assert text_out is None
    assert out.dtype == dtype
    plan = engine.exchange.plans[step % engine.pattern.n_offsets]
    token_bytes = sum(x[:, :1].nbytes for x in qkv[1:])
    assert engine.received.kv_bytes - before == plan.received_tokens * token_bytes
    return relative_error(out, expected(qkv, sets, grid.tokens_per_frame)[0][:, part])


def placements(rank, world):
    """Largest errors over the steps, by exchange, rotation and dtype."""
    grid, worst = FrameGrid(T, 2, 5), {}
    for exchange, rotate, dtype in itertools.product(EXCHANGES, (False, True), TOLERANCE):
        pattern = published(T, **OPTIONS, rotate=rotate)
        sets = placed("published", T, **OPTIONS, rotate=rotate)
        engine = LVSAttention(pattern, grid, group=dist.group.WORLD, exchange=exchange)
        worst[exchange, rotate, dtype] = max(
            attend_step(engine, step, sets[step % len(sets)], step, dtype=dtype)
            for step in range(6 if rotate else 1)
        )
    return worst


@WORLDS
def test_equals_dense_masked_attention(world):
    for worst in run_ranks(world, placements):
        assert len(worst) == 12
        wrong = {case: error for case, error in worst.items() if error >= TOLERANCE[case[2]]}
        assert not wrong


def patterns_of_ones_own(rank, world):
    """Largest errors over the offsets, by pattern and exchange."""
    worst = {}
    for (name, (pattern, sets)), exchange in itertools.product(OWN_PATTERNS.items(), EXCHANGES):
        grid = FrameGrid(pattern.frames, 1, 6)
        engine = LVSAttention(pattern, grid, group=dist.group.WORLD, exchange=exchange)
        worst[name, exchange] = max(
            attend_step(engine, step, sets[step], step) for step in range(pattern.n_offsets)
        )
    return worst


@WORLDS
def test_patterns_of_ones_own_equal_dense_masked_attention(world):
    for worst in run_ranks(world, patterns_of_ones_own):
        assert len(worst) == 3 * len(OWN_PATTERNS)
        assert not {case: error for case, error in worst.items() if error >= 1e-10}


def uneven(rank, world, frames, rows, columns):
    options = {"interval": 3, "window": 1, "n_first": 1, "rotate": True}
    sets = placed("published", frames, **options)
    grid, worst = FrameGrid(frames, rows, columns), {}
    for exchange in EXCHANGES:
        engine = LVSAttention(
            published(frames, **options), grid, group=dist.group.WORLD, exchange=exchange
        )
        worst[exchange] = max(attend_step(engine, step, sets[step % 3], step) for step in range(4))
    assert engine.local_tokens % grid.tokens_per_frame, "this cut was meant to fall inside a frame"
    return worst


@pytest.mark.parametrize(
    ("world", "frames", "rows", "columns"),
    [(2, 9, 2, 5), (3, 10, 3, 3), (4, 9, 2, 2), (4, 7, 4, 3)],
)
def test_cuts_inside_a_frame(world, frames, rows, columns):
    for worst in run_ranks(world, uneven, frames, rows, columns):
        assert not {case: error for case, error in worst.items() if error >= 1e-10}


def with_text(rank, world, exchange):
    """Errors of video and text, and the text that goes on; for all text and for padded text."""
    grid, B, X, step = FrameGrid(T, 2, 5), 2, 7, 2
    engine = LVSAttention(
        published(T, **OPTIONS, rotate=True), grid, group=dist.group.WORLD, exchange=exchange
    )
    engine.step = step
    sets = placed("published", T, **OPTIONS, rotate=True)[step]
    qkv = random_qkv(grid.tokens, 1, B, dtype=torch.float64)
    part = slice(*engine.shards.token_range(rank))
    padded, valid = padded_text(X, B)
    found = []
    for text, mask, scale in (
        (TextTokens(*padded[:3]), None, None),
        (padded, valid, None),
        (padded, valid, 0.2),
    ):
        out, text_out = engine(*(x[:, part] for x in qkv), text, scale)
        video, words = expected(qkv, sets, grid.tokens_per_frame, list(padded[:3]), mask, scale)
        errors = relative_error(out, video[:, part]), relative_error(text_out, words)
        found.append((errors, text_out))
    return found


@pytest.mark.parametrize(
    ("world", "exchange"), [(1, "needed"), (2, "all_gather"), (3, "ring"), (4, "needed")]
)
def test_text_is_counted_once(world, exchange):
    results = run_ranks(world, with_text, exchange)
    for found in results:
        for (errors, text_out), (_, first) in zip(found, results[0], strict=True):
            assert max(errors) < 1e-10
            assert torch.equal(text_out, first), "ranks must go on with the same text bits"


def test_text_of_which_nothing_is_valid_is_as_none():
    grid = FrameGrid(T, 1, 4)
    engine = LVSAttention(published(T, **OPTIONS), grid)
    qkv = random_qkv(grid.tokens, 0, dtype=torch.float64)
    text = random_qkv(5, 1, dtype=torch.float64)
    alone, _ = engine(*qkv)
    out, text_out = engine(*qkv, TextTokens(*text, valid=(torch.empty(0, dtype=torch.int64),)))
    assert torch.equal(out, alone)
    assert (text_out == 0).all()


def test_dense_pattern_is_one_tile():
    engine = LVSAttention(dense(6), FrameGrid(6, 2, 2))
    assert len(engine.exchange.plans[0].blocks[0].layout.tiles) == 1
    qkv = random_qkv(24, 0, dtype=torch.float64)
    assert relative_error(engine(*qkv)[0], expected(qkv, [{*range(6)}] * 6, 4)[0]) < 1e-10


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_scale(scale):
    engine = LVSAttention(published(T, **OPTIONS), FrameGrid(T, 1, 3))
    sets = placed("published", T, **OPTIONS)[0]
    qkv = random_qkv(T * 3, 0, dtype=torch.float64)
    out, _ = engine(*qkv, scale=scale)
    assert relative_error(out, expected(qkv, sets, 3, scale=scale)[0]) < 1e-10
    assert relative_error(out, expected(qkv, sets, 3)[0]) > 1e-3


def test_every_shape_of_grid():
    sets = placed("published", T, **OPTIONS)[0]
    for rows, columns in itertools.product((1, 2, 3), repeat=2):
        grid = FrameGrid(T, rows, columns)
        engine = LVSAttention(published(T, **OPTIONS), grid)
        assert attend_step(engine, 0, sets, seed=rows) < 1e-10
