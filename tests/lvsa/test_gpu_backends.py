"""Every backend and kernel on a CUDA device, against float64 on the CPU. Run by ``make gpu``.

Inputs are new in every run; a seed is part of each failure. Memory that kernels write into is full
of NaN beforehand, so that a row nobody wrote shows.
"""

import math
import random

import pytest
import torch

from lvsa.attention import LVSAttention, TextTokens
from lvsa.backends import BACKENDS, Backend, get_backend
from lvsa.errors import BackendUnavailable
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.keyframes import published
from lvsa.layout import full_layout, layout_of
from lvsa.shards import FrameGrid
from lvsa.tiles import Tile
from tests.support.engines import expected, padded_text, random_qkv
from tests.support.kernels import check, draw_qkv
from tests.support.oracle import placed, relative_error

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
NAMES = [
    *(name for name in BACKENDS if name not in ("npu",)),
    *("sdpa:flash", "sdpa:cudnn", "sdpa:efficient", "sdpa:fa3", "sdpa:fa4"),
    *("flashinfer:fa2", "flashinfer:fa3", "flashinfer:cute-dsl"),
]
P = 195  # tokens a frame: no block size divides it
LAYOUTS = {
    "one tile": [Tile(0, 300, ((0, 700),))],
    "frames and anchors": [
        Tile(i * P, (i + 1) * P, ((0, P), ((i + 2) * P, (i + 5) * P), (9 * P, 10 * P)))
        for i in range(4)
    ],
    "whole blocks": [
        Tile(i * 128, (i + 1) * 128, ((0, 128), ((i + 1) * 128, (i + 3) * 128))) for i in range(4)
    ],
    "gaps and single keys": [Tile(3, 40, ((5, 6), (77, 200))), Tile(90, 300, ((1, 64), (65, 66)))],
}


@pytest.fixture
def seed():
    return random.randrange(1 << 31)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What the allocator hands out next is full of NaN."""
    poison = torch.full((128 << 20,), math.nan, device="cuda")
    del poison


OURS = ("math", "sdpa", "triton")
"""Backends that every GPU has, at the head dimensions of the models served."""


def backend_for(name: str, dtype: torch.dtype, head_dim: int) -> Backend:
    """The backend, or a skip that says what it lacks here."""
    try:
        backend = get_backend(name, "cuda")
        backend.check(torch.device("cuda"), dtype, head_dim)
    except BackendUnavailable as error:
        if name in OURS and head_dim in (64, 128):
            raise
        pytest.skip(str(error))
    return backend


def on_cuda(backend, q, k, v, layout, **options):
    q, k, v = (x.cuda() for x in (q, k, v))
    state = backend.attend(q, *unpack_kv(pack_kv(k, v)), layout.to("cuda"), **options)
    return type(state)(*(x.cpu() for x in state))


@pytest.mark.parametrize("tiles", LAYOUTS)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256, 12])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_float64_on_the_cpu(name, dtype, head_dim, tiles, seed):
    backend = backend_for(name, dtype, head_dim)
    layout = layout_of(LAYOUTS[tiles], max(tile.stop for tile in LAYOUTS[tiles]) + 5)
    C = max(stop for tile in LAYOUTS[tiles] for _, stop in tile.keys)
    q, k, v = draw_qkv(1, layout.n_queries, C + 3, seed, dtype, head_dim)
    check(on_cuda(backend, q, k, v, layout), q, k, v, layout, tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_states_merge(name, dtype, seed):
    backend = backend_for(name, dtype, 64)
    q, k, v = (x.cuda() for x in draw_qkv(1, 200, 517, seed, dtype, 64))
    state = backend.attend(q, k[:, :300], v[:, :300], full_layout(200, 300).to("cuda"), more=True)
    state = backend.attend_all(q, k[:, 300:301], v[:, 300:301], None, state, more=True)
    state = backend.attend_all(q, k[:, 301:], v[:, 301:], None, state)
    got = type(state)(*(x.cpu() for x in state))
    q, k, v = (x.cpu() for x in (q, k, v))
    check(got, q, k, v, full_layout(200, 517), tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_engine_with_padded_text(name, dtype, seed):
    T, tokens, options = 12, 48, {"interval": 4, "window": 1, "rotate": True}
    backend = backend_for(name, dtype, 64)
    pattern = published(T, **options)
    engine = LVSAttention(pattern, FrameGrid(T, 6, 8), backend=backend, device="cuda")
    engine.step = 2
    qkv = random_qkv(T * tokens, seed, 2, D=64, dtype=dtype)
    words = random_qkv(9, seed + 1, 2, D=64, dtype=dtype)
    padded, valid = padded_text(9, 2)
    text = TextTokens(*(x.cuda() for x in words), valid=tuple(x.cuda() for x in padded.valid))
    out, text_out = engine(*(x.cuda() for x in qkv), text)
    video, of_text = expected(qkv, placed("published", T, **options)[2], tokens, words, valid)
    assert relative_error(out.cpu(), video) < TOLERANCE[dtype]
    assert relative_error(text_out.cpu(), of_text) < TOLERANCE[dtype]
