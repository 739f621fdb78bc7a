"""The promise: the same attention for every number of ranks, every exchange, equal to one dense
masked softmax."""

import itertools

import pytest
import torch

from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.keyframes import published
from lvsa.pattern import dense
from lvsa.shards import FrameGrid
from tests.support.oracle import (
    attended_set,
    masked_attention,
    published_keyframes,
    relative_error,
    token_mask,
)
from tests.support.ranks import run_ranks

T, W, N_FIRST, INTERVAL = 12, 1, 1, 4
H, D = 2, 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}


def draw(B, S, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, S, H, D, generator=generator, dtype=dtype) for _ in range(3)]


def expected_video(q, k, v, P, offset):
    keyframes = published_keyframes(T, INTERVAL, offset)
    sets = [attended_set(T, W, N_FIRST, keyframes, f) for f in range(T)]
    return masked_attention(q, k, v, token_mask(sets, P))


def sparse_pattern(rotate):
    return published(T, interval=INTERVAL, window=W, n_first=N_FIRST, rotate=rotate)


def attend_all(rank, world, exchange, P_rows, P_columns, rotate, dtype):
    """Largest relative error over steps, for this rank's part; bytes counted and planned."""
    import torch.distributed as dist

    P, B = P_rows * P_columns, 2
    engine = LVSAttention(
        sparse_pattern(rotate),
        FrameGrid(T, P_rows, P_columns),
        group=dist.group.WORLD,
        exchange=exchange,
    )
    part = slice(*engine.shards.token_range(rank))
    worst = 0.0
    for step in range(6 if rotate else 1):
        q, k, v = draw(B, T * P, dtype, seed=step)
        engine.step = step
        before = engine.received.kv_bytes
        out, _ = engine(q[:, part], k[:, part], v[:, part])
        offset = step % INTERVAL if rotate else 0
        expected = expected_video(q, k, v, P, offset)[:, part]
        worst = max(worst, relative_error(out, expected))
        if world > 1:
            planned = engine.exchange.plans[offset].received_tokens * 2 * B * H * D * dtype.itemsize
            assert engine.received.kv_bytes - before == planned
    return worst


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rotate", [False, True], ids=["fixed", "rotating"])
@pytest.mark.parametrize("exchange", ["all_gather", "ring", "needed"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_equals_dense_masked_attention(world, exchange, rotate, dtype):
    errors = run_ranks(world, attend_all, exchange, 2, 5, rotate, dtype)
    assert max(errors) < TOLERANCE[dtype]


def uneven(rank, world, exchange, T_uneven, rows, columns):
    import torch.distributed as dist

    pattern = published(T_uneven, interval=3, window=1, n_first=1, rotate=True)
    grid = FrameGrid(T_uneven, rows, columns)
    engine = LVSAttention(pattern, grid, group=dist.group.WORLD, exchange=exchange)
    part = slice(*engine.shards.token_range(rank))
    worst = 0.0
    for step in range(4):
        q, k, v = draw(1, grid.tokens, torch.float64, seed=step)
        engine.step = step
        out, _ = engine(q[:, part], k[:, part], v[:, part])
        keyframes = published_keyframes(T_uneven, 3, step % 3)
        sets = [attended_set(T_uneven, 1, 1, keyframes, f) for f in range(T_uneven)]
        mask = token_mask(sets, grid.tokens_per_frame)
        worst = max(worst, relative_error(out, masked_attention(q, k, v, mask)[:, part]))
    assert engine.local_tokens % grid.tokens_per_frame, "this cut was meant to fall inside a frame"
    return worst


@pytest.mark.parametrize("exchange", ["all_gather", "ring", "needed"])
@pytest.mark.parametrize(
    ("world", "frames", "rows", "columns"),
    [(2, 9, 2, 5), (3, 10, 3, 3), (4, 9, 2, 2), (4, 7, 4, 3)],
)
def test_cuts_inside_a_frame(world, frames, rows, columns, exchange):
    assert max(run_ranks(world, uneven, exchange, frames, rows, columns)) < 1e-10


def with_text(rank, world, exchange, masked, B=2):
    import torch.distributed as dist

    P, X = 10, 7
    S = T * P
    engine = LVSAttention(
        sparse_pattern(True), FrameGrid(T, 2, 5), group=dist.group.WORLD, exchange=exchange
    )
    part = slice(*engine.shards.token_range(rank))
    q, k, v = draw(B, S, torch.float64, seed=1)
    tq, tk, tv = draw(B, X, torch.float64, seed=2)
    valid = torch.ones(B, X, dtype=torch.bool)
    if masked:
        valid[0, 4:] = False
        valid[1, :2] = False
    engine.step = 2
    text = TextTokens(tq, tk, tv, valid_positions(valid) if masked else None)
    out, text_out = engine(q[:, part], k[:, part], v[:, part], text)

    keyframes = published_keyframes(T, INTERVAL, 2)
    sets = [attended_set(T, W, N_FIRST, keyframes, f) for f in range(T)]
    mask = torch.zeros(B, S + X, S + X, dtype=torch.bool)
    mask[:, :S, :S] = token_mask(sets, P)
    mask[:, S:, :S] = True
    mask[:, :, S:] = valid[:, None, :]
    joined = [torch.cat(pair, dim=1) for pair in ((q, tq), (k, tk), (v, tv))]
    expected = masked_attention(*joined, mask)
    return (
        relative_error(out, expected[:, :S][:, part]),
        relative_error(text_out, expected[:, S:]),
        text_out,
    )


@pytest.mark.parametrize("masked", [False, True], ids=["all text", "padded text"])
@pytest.mark.parametrize(
    ("world", "exchange"), [(1, "needed"), (2, "all_gather"), (3, "ring"), (4, "needed")]
)
def test_text_is_counted_once(world, exchange, masked):
    results = run_ranks(world, with_text, exchange, masked)
    assert max(video for video, _, _ in results) < 1e-10
    assert max(text for _, text, _ in results) < 1e-10
    for _, _, text_out in results:
        assert torch.equal(text_out, results[0][2]), "ranks must go on with the same text bits"


def test_dense_pattern_is_one_tile():
    engine = LVSAttention(dense(6), FrameGrid(6, 2, 2))
    assert len(engine.exchange.plans[0].blocks[0].layout.tiles) == 1
    q, k, v = draw(1, 24, torch.float64, seed=0)
    assert relative_error(engine(q, k, v)[0], masked_attention(q, k, v)) < 1e-10


def test_patterns_with_every_shape_of_grid():
    for rows, columns in itertools.product((1, 2, 3), repeat=2):
        grid = FrameGrid(T, rows, columns)
        engine = LVSAttention(sparse_pattern(False), grid)
        q, k, v = draw(1, grid.tokens, torch.float64, seed=rows)
        expected = expected_video(q, k, v, grid.tokens_per_frame, 0)
        assert relative_error(engine(q, k, v)[0], expected) < 1e-10
