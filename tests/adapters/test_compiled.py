"""Transformers that were compiled before LVSA is enabled, in every way that PyTorch has."""

import pytest
import torch
from torch._dynamo.utils import counters

import lvsa
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
# One pass: most of the time goes into compiling.
RUN = {"steps": 1, "guidance": 1.0}


def whole(pipe):
    pipe.transformer.compile(backend="eager")


def wrapped(pipe):
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def regional(pipe):
    pipe.transformer.compile_repeated_blocks(backend="eager")


def regional_and_run(pipe):
    """Its code knows neither hooks nor processors of LVSA, and no guard would tell."""
    regional(pipe)
    wan_latents(pipe, **RUN)


def blocks_wrapped(pipe):
    blocks = pipe.transformer.blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")


WAYS = [whole, wrapped, regional_and_run, blocks_wrapped]


def latents(rank, world, ways=(None,)):
    found = []
    for way in ways:
        pipe = wan_pipeline()
        if way is not None:
            way(pipe)
        with lvsa.enable(pipe, settings=SETTINGS):
            found.append(wan_latents(pipe, **RUN))
    return found


def test_a_compiled_transformer_makes_the_same_video():
    (expected,) = latents(0, 1)
    for rank in run_ranks(2, latents, WAYS):
        for found in rank:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def graphs(rank, world):
    pipe = wan_pipeline()
    regional(pipe)
    made = []
    with lvsa.enable(pipe, settings=SETTINGS):
        for steps in (2, 5):
            wan_latents(pipe, steps=steps, guidance=1.0)
            made.append(counters["stats"]["unique_graphs"])
    return made


def test_steps_and_videos_compile_nothing_anew():
    """Keyframes move, counters count, ranks exchange: none of it is a reason to compile again."""
    for first, second in run_ranks(2, graphs):
        assert 0 < first == second


@pytest.mark.parametrize("way", [regional, wrapped])
def test_a_compiled_transformer_is_given_back(way):
    pipe = wan_pipeline()
    expected = wan_latents(pipe, **RUN)
    way(pipe)
    with lvsa.enable(pipe, settings=SETTINGS):
        sparse = wan_latents(pipe, **RUN)
    torch.testing.assert_close(wan_latents(pipe, **RUN), expected, rtol=1e-5, atol=1e-5)
    assert (sparse - expected).abs().max() > 1e-3


def test_a_transformer_may_be_wrapped_after_lvsa_too():
    pipe = wan_pipeline()
    with lvsa.enable(pipe, settings=SETTINGS):
        expected = wan_latents(pipe, **RUN)
        wrapped(pipe)
        torch.testing.assert_close(wan_latents(pipe, **RUN), expected, rtol=1e-5, atol=1e-5)
