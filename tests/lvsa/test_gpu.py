"""What needs a CUDA device: the same attention by the CUDA kernels. Run by ``make gpu``."""

import pytest
import torch

import lvsa
from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.keyframes import published
from lvsa.shards import FrameGrid
from tests.support.oracle import (
    attended_set,
    masked_attention,
    published_keyframes,
    relative_error,
    token_mask,
)
from tests.support.tiny import wan_pipeline

pytestmark = pytest.mark.gpu
T, P, HEADS = 12, 48, 4
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def draw(tokens, head_dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, tokens, HEADS, head_dim, generator=generator).to("cuda", dtype)
        for _ in range(3)
    ]


def pattern_and_mask():
    sets = [attended_set(T, 1, 1, published_keyframes(T, 4, 2), f) for f in range(T)]
    return published(T, interval=4, window=1, rotate=True), token_mask(sets, P).cuda()


@pytest.mark.parametrize("head_dim", [64, 128, 12])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_dense_masked_attention(dtype, head_dim):
    pattern, mask = pattern_and_mask()
    engine = LVSAttention(pattern, FrameGrid(T, 6, 8))
    engine.step = 2
    q, k, v = draw(T * P, head_dim, dtype, 0)
    out, _ = engine(q, k, v)
    assert relative_error(out, masked_attention(q, k, v, mask)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_text_with_padding(dtype):
    pattern, mask = pattern_and_mask()
    engine = LVSAttention(pattern, FrameGrid(T, 6, 8))
    engine.step = 2
    q, k, v = draw(T * P, 64, dtype, 0)
    text = draw(9, 64, dtype, 1)
    valid = torch.ones(2, 9, dtype=torch.bool, device="cuda")
    valid[0, 5:] = False
    out, text_out = engine(q, k, v, TextTokens(*text, valid=valid_positions(valid)))
    S = T * P
    full = torch.ones(2, S + 9, S + 9, dtype=torch.bool, device="cuda")
    full[:, :S, :S] = mask
    full[:, :, S:] = valid[:, None]
    expected = masked_attention(
        *(torch.cat(pair, 1) for pair in zip((q, k, v), text, strict=True)), full
    )
    assert relative_error(out, expected[:, :S]) < TOLERANCE[dtype]
    assert relative_error(text_out, expected[:, S:]) < TOLERANCE[dtype]


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
