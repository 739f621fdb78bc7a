"""LVSA inside vLLM-Omni's real engine, on one process: against the engine and against ourselves."""

import pytest
import torch

from lvsa.settings import LVSASettings
from tests.serving.support.engines import (
    BELOW,
    BEYOND,
    STEPS,
    engine,
    generated,
    ours,
    watched_layers,
)
from tests.serving.support.masks import token_mask
from tests.support.oracle import masked_attention, relative_error

pytestmark = pytest.mark.vllm_omni
LAYERS = 6
# The engine's layers round elsewhere than diffusers': so much do their dense latents differ too,
# relative to the largest.
TOLERANCE = 5e-4
ROTATING = LVSASettings(rotate_keyframes=True)


@pytest.fixture(scope="module")
def dense():
    """Latents of the engine's own attention, by number of frames."""
    with engine(dense=True) as omni:
        return {frames: generated(omni, frames) for frames in (BELOW, BEYOND)}


@pytest.fixture(scope="module")
def served():
    """Size, latents and calls of layers for each request to one server; calls of its warm-up."""
    wanted = [(BEYOND, 64, 64), (BELOW, 64, 64), (121, 48, 80), (BEYOND, 64, 64)]
    requests = []
    with watched_layers() as calls, engine({"rotate_keyframes": True}) as omni:
        warm_up = list(calls)
        for size in wanted:
            calls.clear()
            requests.append((size, generated(omni, *size), list(calls)))
    return requests, warm_up


def test_every_length_and_size_in_one_server_is_our_own_pipelines(served):
    for size, latents, _ in served[0]:
        assert relative_error(latents, ours(*size, settings=ROTATING)) < TOLERANCE, size


def test_every_call_is_what_the_definition_says(served):
    """Queries, keys and values as the engine made them, against dense attention under a mask."""
    for (frames, height, width), _, calls in served[0][:3]:
        T, P = (frames - 1) // 4 + 1, (height // 16) * (width // 16)
        for layer, step, qkv, out in calls[:: 2 * LAYERS]:
            mask = token_mask(layer.attend.pattern(T), step, P)
            assert relative_error(out, masked_attention(*qkv, mask)) < 1e-5
            if frames > BELOW:
                assert relative_error(out, masked_attention(*qkv)) > 1e-3


def test_a_repeated_request_is_the_same_bit_for_bit(served):
    (_, first, _), *_, (_, last, _) = served[0]
    assert torch.equal(first, last)


def test_steps_count_from_0_in_every_request_after_a_warm_up_of_one_image(served):
    requests, warm_up = served
    assert {qkv[0].shape[1] for _, _, qkv, _ in warm_up} == {32 * 32}
    for _, _, calls in requests:
        steps = [step for _, step, _, _ in calls]
        assert steps == [step for step in range(STEPS) for _ in range(2 * LAYERS)]


def test_beyond_the_horizon_it_is_not_dense_and_within_it_is(served, dense):
    assert relative_error(served[0][0][1], dense[BEYOND]) > 0.1
    assert relative_error(served[0][1][1], dense[BELOW]) < 1e-5


def test_with_every_frame_kept_it_is_the_engines_dense_result(dense):
    with engine({"sparsity_scale": 100.0}) as omni:
        assert relative_error(generated(omni, BEYOND), dense[BEYOND]) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "more", "named"),
    [
        ({"rotate_keyframe": True}, {}, ("rotate_keyframe", "rotate_keyframes")),
        ({"window_size": 2}, {}, ("window size", "4")),
        ({}, {"diffusion_kv_cache_dtype": "fp8"}, ("diffusion_kv_cache_dtype", "fp8")),
    ],
)
def test_what_is_refused_is_refused_at_start_in_words(options, more, named):
    with pytest.raises((ValueError, RuntimeError)) as caught, engine(options, **more):
        pass
    assert all(word in str(caught.value) for word in named), caught.value
