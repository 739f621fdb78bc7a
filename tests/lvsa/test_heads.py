"""Tokens exchanged for heads around the attention, against one dense masked softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist

from lvsa.attention import LVSAttention, TextTokens
from lvsa.errors import LVSAError
from lvsa.exchange import EXCHANGES
from lvsa.heads import HeadExchange, check_heads
from lvsa.keyframes import published
from lvsa.mesh import DIMENSIONS, MeshSizes, VideoMesh, mesh_sizes
from lvsa.shards import FrameGrid
from lvsa.text import Received
from tests.support.engines import expected, padded_text, random_qkv
from tests.support.errors import refuses
from tests.support.ranks import run_ranks

T, ROWS, COLUMNS, HEADS = 9, 2, 4, 6
P, S = ROWS * COLUMNS, T * ROWS * COLUMNS
PATTERN = published(T, interval=4, window=1, n_first=1, rotate=True)


def attended(rank, world, sizes, exchange, dtype, batch):
    """This rank's outputs on a mesh of these sizes, at two offsets; text and bytes."""
    ranks = VideoMesh.of(MeshSizes(**sizes).device_mesh("cpu"))
    engine = LVSAttention(
        PATTERN, FrameGrid(T, ROWS, COLUMNS), group=ranks.frames, heads=ranks.heads,
        exchange=exchange,
    )  # fmt: skip
    L = S // world
    assert engine.local_tokens == L
    assert (engine.rank, engine.world) == (rank, world)
    mine = slice(rank * L, (rank + 1) * L)
    text, _ = padded_text(5, batch, dtype)
    text = TextTokens(*(each.repeat(1, 1, HEADS // 2, 1) for each in text[:3]), text.valid)
    results = []
    for step in (0, 1):
        engine.step = step
        qkv = [x[:, mine] for x in random_qkv(S, step, batch, HEADS, dtype=dtype)]
        alone, nothing = engine(*qkv)
        assert nothing is None
        results.append((alone, *engine(*qkv, text)))
    return results, engine.received


def check(world, sizes, exchange, dtype, batch=1):
    text, valid = padded_text(5, batch, dtype)
    words = [each.repeat(1, 1, HEADS // 2, 1) for each in text[:3]]
    close = {torch.float64: 1e-10, torch.float32: 2e-5}[dtype]
    everyone = run_ranks(world, attended, sizes, exchange, dtype, batch)
    for step in (0, 1):
        sets = [set(row.nonzero()[0].tolist()) for row in PATTERN.attended[step]]
        qkv = random_qkv(S, step, batch, HEADS, dtype=dtype)
        dense, _ = expected(qkv, sets, P)
        with_text, text_out = expected(qkv, sets, P, words, valid)
        parts = [results[step] for results, _ in everyone]
        for i, whole in enumerate((dense, with_text)):
            found = torch.cat([part[i] for part in parts], dim=1)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), whole.double(), rtol=0, atol=close)
        for part in parts:
            torch.testing.assert_close(part[2].double(), text_out.double(), rtol=0, atol=close)
    return [received for _, received in everyone]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_frames_and_heads(exchange):
    received = check(4, {"frames": 2, "heads": 2}, exchange, torch.float64, batch=2)
    # Four calls; of q, k, v and the output half is another rank's, of B = 2 in float64.
    tokens = S // 4 * HEADS * 8 * 2 * 8
    assert {each.head_bytes for each in received} == {4 * 4 * tokens // 2}
    assert all(each.kv_bytes > 0 for each in received)


def test_heads_alone():
    received = check(3, {"heads": 3}, "needed", torch.float32)
    assert {each.kv_bytes for each in received} == {0}


# Words


def refused(rank, world):
    ranks = VideoMesh.of(MeshSizes(heads=2).device_mesh("cpu"))
    assert ranks.heads is not None
    with refuses(LVSAError, 3, 2, "1, 3"):
        HeadExchange(ranks.heads, Received()).to_heads(*random_qkv(4, 0, H=3))
    with refuses(LVSAError, "2 frames", 4, 2):
        MeshSizes(frames=2, heads=2).device_mesh("cpu")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1, 2), mesh_dim_names=("heads", "frames"))
    with refuses(LVSAError, "heads", "frames", *DIMENSIONS):
        VideoMesh.of(mesh)
    with refuses(LVSAError, 2, *DIMENSIONS):
        VideoMesh.of(dist.device_mesh.init_device_mesh("cpu", (1, 2)))


def test_what_cannot_be():
    run_ranks(2, refused)
    with refuses(LVSAError, 12, 8, "1, 2, 3, 4, 6, 12"):
        check_heads(12, 8)
    with refuses(LVSAError, "heads", 0):
        MeshSizes(heads=0)
    with refuses(LVSAError, 3, 2):
        MeshSizes(guidance=3)


@given(
    st.integers(1, 64), st.integers(1, 4), st.booleans(), st.integers(1, 8),
)  # fmt: skip
def test_what_the_other_dimensions_leave_is_frames(world, replicas, guidance, ulysses):
    unit = replicas * (2 if guidance else 1) * ulysses
    if world % unit:
        with refuses(LVSAError, world, (world // unit + 1) * unit):
            mesh_sizes(world, replicas, guidance, ulysses)
        return
    sizes = mesh_sizes(world, replicas, guidance, ulysses)
    assert sizes.world == world and sizes.heads == ulysses and sizes.replica == replicas
    assert sizes.sequence == sizes.frames * ulysses
    assert sizes.video * replicas == world


def test_one_process_has_no_groups():
    assert VideoMesh.of(None) == VideoMesh()
    assert MeshSizes().device_mesh("cpu") is None
    assert (
        str(MeshSizes()) == "1 rank"
        and str(MeshSizes(2, 2, 1, 4)) == "2 replica × 2 guidance × 4 heads"
    )
