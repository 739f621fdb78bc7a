"""torch.compile: what is around the attention is compiled once, for every step, text and rank."""

import pytest
import torch
from torch import distributed as dist
from torch._dynamo.testing import CompileCounter

from lvsa.attention import LVSAttention, TextTokens
from lvsa.exchange import EXCHANGES
from lvsa.keyframes import published
from lvsa.shards import FrameGrid
from tests.support.engines import padded_text, random_qkv
from tests.support.ranks import run_ranks

PATTERN = published(6, interval=3, window=1, rotate=True)
GRID = FrameGrid(6, 1, 2)
X, B = 5, 2


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def texts():
    padded, _ = padded_text(X, B, torch.float32)
    return {"no text": None, "all text": TextTokens(*padded[:3]), "padded text": padded}


def graphs_of_steps(engine, text, rank=0):
    """Graphs that were compiled after each of several steps, whose results are the plain ones."""
    counter = CompileCounter()

    def block(q, k, v):
        out, text_out = engine(2 * q, k, v, text)
        return out + 1 if text_out is None else (out + 1, text_out + 1)

    torch._dynamo.reset()
    compiled, counts = torch.compile(block, backend=counter), []
    qkv = random_qkv(engine.local_tokens, rank, B)
    with torch.no_grad():
        for step in range(2 * engine.pattern.n_offsets):
            engine.step = step
            torch.testing.assert_close(compiled(*qkv), block(*qkv))
            counts.append(counter.frame_count)
    return counts


@pytest.mark.parametrize("text", texts().values(), ids=[*texts()])
@pytest.mark.parametrize("kernel", ["auto", "math"])
def test_steps_share_their_graphs(text, kernel):
    """One before the attention and one behind it."""
    assert PATTERN.n_offsets > 1
    counts = graphs_of_steps(LVSAttention(PATTERN, GRID, backend=kernel), text)
    assert counts == [2] * len(counts)


def on_ranks(rank, world):
    group = dist.group.WORLD
    padded = texts()["padded text"]
    return {
        exchange: graphs_of_steps(
            LVSAttention(PATTERN, GRID, group=group, exchange=exchange), padded, rank
        )
        for exchange in EXCHANGES
    }


def test_steps_share_their_graphs_on_ranks():
    for found in run_ranks(2, on_ranks):
        assert {tuple(set(counts)) for counts in found.values()} == {(2,)}
