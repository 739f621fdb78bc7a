"""torch.compile: the attention of one rank is one graph; on ranks, graphs end at collectives."""

import pytest
import torch
from torch import distributed as dist
from torch._dynamo.testing import CompileCounter

from lvsa.attention import LVSAttention, TextTokens
from lvsa.backends.tile_by_tile import SMALL_TILE_WORK
from lvsa.exchange import EXCHANGES
from lvsa.keyframes import published
from lvsa.pattern import Pattern, dense
from lvsa.shards import FrameGrid
from tests.support.engines import padded_text, random_qkv
from tests.support.ranks import run_ranks

OPTIONS = {"interval": 3, "window": 1, "rotate": True}
# By how the kernel is called: in batches of copied keys, tile by tile, or on strided views.
KINDS = {
    "batched tiles": (published(9, interval=4, window=1), 1 << 22),
    "single tiles": (published(9, interval=4, window=1), 0),
    "runs": (Pattern.of([[abs(f - g) < 2 for g in range(9)] for f in range(9)]), 0),
}
X, B = 5, 2


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def texts():
    padded, _ = padded_text(X, B, torch.float32)
    return {"no text": None, "all text": TextTokens(*padded[:3]), "padded text": padded}


@pytest.mark.parametrize("text", texts().values(), ids=[*texts()])
@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_break_on_one_rank(kind, text, monkeypatch):
    """Nor anything that the compiler cannot turn into pure functions."""
    pattern, small = KINDS[kind]
    monkeypatch.setitem(SMALL_TILE_WORK, "cpu", small)
    engine = LVSAttention(pattern, FrameGrid(9, 1, 4))
    layout = engine.exchange.plans[0].blocks[0].layout
    assert layout.runs if kind == "runs" else [g for g in layout.groups if len(g.tiles) > 1]
    qkv = random_qkv(36, 0, B)
    compiled = torch.compile(engine.__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*qkv, text), engine(*qkv, text))
    assert engine.received.calls == 2


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "math"])
def test_a_first_call_is_one_graph(kernel):
    """Also where the kernel has to be chosen yet."""
    engine = LVSAttention(dense(3), FrameGrid(3, 1, 4), backend=kernel)
    qkv = random_qkv(12, 0)
    compiled = torch.compile(engine.__call__, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*qkv), engine(*qkv))


def test_an_offset_is_compiled_once():
    """The counts that change with every call cost one more graph in all, the step none."""
    counter = CompileCounter()
    engine = LVSAttention(published(6, **OPTIONS), FrameGrid(6, 1, 2))
    compiled = torch.compile(engine.__call__, fullgraph=True, backend=counter)
    qkv = random_qkv(12, 0)
    for step in range(4 * engine.pattern.n_offsets):
        engine.step = step
        compiled(*qkv)
    assert counter.frame_count == engine.pattern.n_offsets + 1


def breaks_on_ranks(rank, world):
    """By exchange why graphs ended; results are those of the plain engine."""
    found = {}
    for exchange in EXCHANGES:
        text = padded_text(X, B, torch.float32)[0] if exchange == "needed" else None
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        engine = LVSAttention(
            published(4, interval=4, window=0),
            FrameGrid(4, 1, 2),
            group=dist.group.WORLD,
            exchange=exchange,
        )
        qkv = random_qkv(engine.local_tokens, rank, B)
        compiled = torch.compile(engine.__call__, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(*qkv, text), engine(*qkv, text))
        found[exchange] = [*torch._dynamo.utils.counters["graph_break"]]
    return found


def test_graphs_of_ranks_end_at_collectives_alone():
    for found in run_ranks(2, breaks_on_ranks):
        assert found["all_gather"], "the compiler counts them"
        others = [
            reason
            for reasons in found.values()
            for reason in reasons
            if not any(word in reason for word in ("distributed", "P2P", "c10d", "ProcessGroup"))
        ]
        assert others == []
