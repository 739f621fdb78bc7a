"""What needs a CUDA device: the same attention by the CUDA kernels. Run by ``make gpu``."""

import pytest
import torch

import lvsa
from lvsa.attention import LVSAttention, TextTokens
from lvsa.backends.sdpa import SDPABackend
from lvsa.backends.tile_by_tile import SMALL_TILE_WORK
from lvsa.keyframes import published
from lvsa.shards import FrameGrid
from tests.support.engines import expected, padded_text, random_qkv
from tests.support.oracle import placed, relative_error
from tests.support.own_patterns import OWN_PATTERNS
from tests.support.tiny import wan_pipeline

pytestmark = pytest.mark.gpu
T, P, B, STEP = 12, 48, 2, 2
OPTIONS = {"interval": 4, "window": 1, "rotate": True}
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def engine_of(**options):
    pattern = published(T, **OPTIONS)
    engine = LVSAttention(pattern, FrameGrid(T, 6, 8), device="cuda", **options)
    engine.step = STEP
    return engine, placed("published", T, **OPTIONS)[STEP]


def on_gpu(tensors, dtype=None):
    return [x.to("cuda", dtype) for x in tensors]


@pytest.mark.parametrize("head_dim", [64, 128, 12])
@pytest.mark.parametrize("small", [0, 1 << 40], ids=["single tiles", "batched tiles"])
@DTYPES
def test_equals_dense_masked_attention(dtype, small, head_dim, monkeypatch):
    monkeypatch.setitem(SMALL_TILE_WORK, "cuda", small)
    engine, sets = engine_of(backend=SDPABackend())
    qkv = random_qkv(T * P, 0, B, H=4, D=head_dim, dtype=dtype)
    out, _ = engine(*on_gpu(qkv))
    assert relative_error(out.cpu(), expected(qkv, sets, P)[0]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", OWN_PATTERNS)
def test_patterns_of_ones_own(name):
    pattern, every = OWN_PATTERNS[name]
    engine = LVSAttention(pattern, FrameGrid(pattern.frames, 4, 4), device="cuda")
    qkv = random_qkv(pattern.frames * 16, 0, D=64)
    for step, sets in enumerate(every):
        engine.step = step
        out, _ = engine(*on_gpu(qkv))
        assert relative_error(out.cpu(), expected(qkv, sets, 16)[0]) < TOLERANCE[torch.float32]


@DTYPES
def test_text_with_padding(dtype):
    engine, sets = engine_of()
    qkv = random_qkv(T * P, 0, B, D=64, dtype=dtype)
    words = random_qkv(9, 1, B, D=64, dtype=dtype)
    padded, valid = padded_text(9, B)
    text = TextTokens(*on_gpu(words), valid=tuple(on_gpu(padded.valid)))
    out, text_out = engine(*on_gpu(qkv), text)
    video, of_text = expected(qkv, sets, P, words, valid)
    assert relative_error(out.cpu(), video) < TOLERANCE[dtype]
    assert relative_error(text_out.cpu(), of_text) < TOLERANCE[dtype]


@pytest.mark.parametrize("small", [0, 1 << 40], ids=["single tiles", "batched tiles"])
def test_a_call_never_waits_for_the_device(small, monkeypatch):
    monkeypatch.setitem(SMALL_TILE_WORK, "cuda", small)
    engine, _ = engine_of()
    qkv = on_gpu(random_qkv(T * P, 0, B, D=64), torch.bfloat16)
    engine(*qkv)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(engine.pattern.n_offsets):
            engine.step = step
            engine(*qkv)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_generation_equals_the_stock_pipeline_at_the_horizon():
    pipe = wan_pipeline().to("cuda")
    pipe.set_progress_bar_config(disable=True)
    size = {"num_frames": 45, "height": 32, "width": 48}

    def generate():
        return pipe(
            prompt="a red circle", num_inference_steps=3, output_type="latent", **size,
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip

    stock = generate()
    with lvsa.enable(pipe, **size):
        torch.testing.assert_close(generate(), stock, rtol=1e-3, atol=1e-3)
