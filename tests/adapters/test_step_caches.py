"""diffusers' step caches on several ranks: one decision, that of one process."""

import pytest
import torch
from diffusers import (
    ContextParallelConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_context_parallel
from diffusers.hooks.first_block_cache import FBCHeadBlockHook

import lvsa
from lvsa.errors import LVSAError
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
STEPS = 6


def taylorseer():
    return TaylorSeerCacheConfig(
        cache_interval=2, use_lite_mode=True, taylor_factors_dtype=torch.float32
    )


CACHES = {
    "first-block": lambda: FirstBlockCacheConfig(threshold=0.6),
    "sea": lambda: SeaCacheConfig(threshold=0.6),
    "taylorseer": taylorseer,
    "mag": lambda: MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS),
}


def cached(pipe, config):
    for transformer in (pipe.transformer, pipe.transformer_2):
        if transformer is not None:
            transformer.enable_cache(config)


def videos(rank, world, after=False):
    """Latents and attention calls, by cache, with one transformer and two."""
    found = {}
    for name, config in CACHES.items():
        for two in (False, True):
            pipe = wan_pipeline(two_transformers=two)
            if not after:
                cached(pipe, config())
            with lvsa.enable(pipe, settings=SETTINGS) as session:
                if after:
                    cached(pipe, config())
                latents = wan_latents(pipe, steps=STEPS)
                found[name, two] = latents, session.attention.received.calls
    return found


@pytest.fixture(scope="module")
def one_process():
    return videos(0, 1)


@pytest.mark.parametrize(("world", "after"), [(2, False), (3, True)])
def test_ranks_skip_together_and_as_one_process_does(world, after, one_process):
    for rank in run_ranks(world, videos, after):
        for case, (latents, calls) in rank.items():
            expected, calls_of_one = one_process[case]
            assert calls == calls_of_one, case
            torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    # 2 layers, 2 passes: some of the attention was skipped.
    assert all(calls < STEPS * 2 * 2 for _, calls in one_process.values())


# FirstBlockCache where the ranks see different changes


def changes(rank, world):
    """How much of the first block's residual changed: in each half of the tokens, and in all."""
    pipe = wan_pipeline()
    seen = []

    def watch(self, residual):
        before = self.state_manager.get_state().head_block_residual
        if before is not None:
            parts = [slice(0, 36), slice(36, 72), slice(None)]
            seen.append(
                [((residual - before)[:, p].abs().mean() / before[:, p].abs().mean()).item()
                 for p in parts]
            )  # fmt: skip
        return True

    cached(pipe, FirstBlockCacheConfig())
    with pytest.MonkeyPatch.context() as patch, lvsa.enable(pipe, settings=SETTINGS):
        patch.setattr("lvsa.adapters.install.watch.share_decisions", lambda *_: [])
        patch.setattr(FBCHeadBlockHook, "_should_compute_remaining_blocks", watch)
        wan_latents(pipe, steps=STEPS)
    return seen


def decided(rank, world, threshold):
    pipe = wan_pipeline()
    cached(pipe, FirstBlockCacheConfig(threshold=threshold))
    with lvsa.enable(pipe, settings=SETTINGS) as session:
        return wan_latents(pipe, steps=STEPS), session.attention.received.calls


def test_the_decision_is_that_of_all_tokens():
    """Alone, one rank would skip here and the other wait for its keys."""
    first, second, _ = max(changes(0, 1), key=lambda change: abs(change[0] - change[1]))
    threshold = (first + second) / 2
    assert abs(first - second) > 1e-2
    expected, calls = decided(0, 1, threshold)
    for latents, calls_of_rank in run_ranks(2, decided, threshold):
        assert calls_of_rank == calls
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CACHES)
def test_a_generation_that_failed_leaves_nothing_in_a_cache(name):
    pipe = wan_pipeline()
    cached(pipe, CACHES[name]())

    def fail(pipe, step, timestep, given):
        if step == 2:
            raise ZeroDivisionError
        return given

    with lvsa.enable(pipe, settings=SETTINGS):
        expected = wan_latents(pipe, steps=STEPS)
        with pytest.raises(ZeroDivisionError):
            wan_latents(pipe, steps=STEPS, seed=1, callback_on_step_end=fail)
        assert torch.equal(wan_latents(pipe, steps=STEPS), expected)


def test_a_cache_is_given_back():
    pipe = wan_pipeline()
    cached(pipe, FirstBlockCacheConfig(threshold=0.6))
    expected = wan_latents(pipe, steps=STEPS)
    with lvsa.enable(pipe):
        wan_latents(pipe, steps=STEPS)
    assert torch.equal(wan_latents(pipe, steps=STEPS), expected)
    head = pipe.transformer.blocks[0]._diffusers_hook.get_hook("fbc_leader_block_hook")
    assert "_should_compute_remaining_blocks" not in vars(head)


# What cannot work


def calibrated(rank, world):
    pipe = wan_pipeline()
    cached(pipe, MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    with refuses(LVSAError, "MagCache", "transformer", world):
        lvsa.enable(pipe)


def cut_by_diffusers(rank, world):
    pipe = wan_pipeline()
    # What enable_parallelism does, which wants an accelerator for each rank.
    plan, config = pipe.transformer._cp_plan, ContextParallelConfig(ulysses_degree=world)
    apply_context_parallel(pipe.transformer, config, plan)
    with refuses(LVSAError, "transformer", "cp_input", "enable_parallelism"):
        lvsa.enable(pipe)


@pytest.mark.parametrize("work", [calibrated, cut_by_diffusers])
def test_what_cannot_work_is_refused(work):
    run_ranks(2, work)
