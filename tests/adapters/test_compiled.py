"""A transformer that was compiled before LVSA is enabled."""

import torch

import lvsa
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)


def latents(rank, world, compiled=False):
    pipe = wan_pipeline()
    if compiled:
        pipe.transformer.compile(backend="eager")
    with lvsa.enable(pipe, settings=SETTINGS):
        # One forward: most of the time goes into compiling.
        return wan_latents(pipe, steps=1, guidance=1.0)


def test_a_compiled_transformer_makes_the_same_video():
    """The trial of a plan runs uncompiled; what watches a forward stays out of the graph."""
    expected = latents(0, 1)
    for found in run_ranks(2, latents, True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
