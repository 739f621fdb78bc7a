"""Wan through the library call: forward and whole generations, on 1 to 4 ranks."""

import pytest
import torch

import lvsa
from lvsa.errors import LVSAError
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline

SIZE = {"num_frames": 45, "height": 32, "width": 48}  # 12 latent frames of 2 × 3 tokens
SETTINGS = lvsa.LVSASettings(
    window_size=4, n_first_frames=4, key_frame_interval=16, rotate_keyframes=True
)
KINDS = {
    "wan 2.1": {},
    "wan 2.2 two transformers": {"two_transformers": True},
    "wan 2.2 TI2V": {"per_token_timesteps": True},
}


def sparse_generation(rank, world, kind, exchange, seeds=(0,)):
    pipe = wan_pipeline(**KINDS[kind])
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS, exchange=exchange) as session:
        assert not session.attention.pattern.is_dense
        return [wan_latents(pipe, seed=seed) for seed in seeds]


@pytest.fixture(scope="module")
def one_process():
    return {kind: sparse_generation(0, 1, kind, "needed")[0] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("world", "exchange"),
    [(1, "needed"), (2, "all_gather"), (2, "ring"), (2, "needed"), (3, "ring"), (4, "needed")],
)
def test_generation_is_the_same_on_any_ranks(kind, world, exchange, one_process):
    for (latents,) in run_ranks(world, sparse_generation, kind, exchange):
        torch.testing.assert_close(latents, one_process[kind], rtol=1e-5, atol=1e-5)


def test_sparse_differs_from_dense(one_process):
    dense = wan_latents(wan_pipeline())
    assert (dense - one_process["wan 2.1"]).abs().max() > 1e-3


def cut_frames(rank, world, exchange):
    """9 latent frames of 2 × 2 tokens on 4 ranks of 9 tokens: every cut falls in a frame."""
    pipe = wan_pipeline()
    size = {"num_frames": 33, "height": 32, "width": 32}
    settings = lvsa.LVSASettings(window_size=4, key_frame_interval=12, rotate_keyframes=True)
    with lvsa.enable(pipe, **size, settings=settings, exchange=exchange):
        return wan_latents(pipe, **size)


@pytest.mark.parametrize("exchange", ["all_gather", "ring", "needed"])
def test_cuts_inside_a_frame(exchange):
    alone = cut_frames(0, 1, exchange)
    for latents in run_ranks(4, cut_frames, exchange):
        torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_stock_attention_at_the_horizon(kind):
    pipe = wan_pipeline(**KINDS[kind])
    stock = wan_latents(pipe)
    with lvsa.enable(pipe, **SIZE) as session:
        assert session.attention.pattern.is_dense
        torch.testing.assert_close(wan_latents(pipe), stock, rtol=1e-5, atol=1e-5)
    # And the pipeline is its old self afterwards, bit for bit.
    assert torch.equal(wan_latents(pipe), stock)


def test_two_generations_equal_two_processes(one_process):
    first, second = sparse_generation(0, 1, "wan 2.1", "needed", seeds=(0, 1))
    torch.testing.assert_close(first, one_process["wan 2.1"], rtol=0, atol=0)
    (alone,) = sparse_generation(0, 1, "wan 2.1", "needed", seeds=(1,))
    torch.testing.assert_close(second, alone, rtol=0, atol=0)


def test_clock_counts_steps_and_starts_again():
    pipe = wan_pipeline()
    seen = []
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS) as session:
        hook = pipe.transformer.register_forward_hook(
            lambda *_: seen.append(session.attention.step)
        )
        wan_latents(pipe)
        wan_latents(pipe, guidance=1.0)
        scheduler = pipe.scheduler
        pipe.scheduler = type(scheduler).from_config(scheduler.config)
        wan_latents(pipe, guidance=1.0)
        hook.remove()
    assert seen == [0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2]
    assert "step" not in vars(pipe.scheduler) and "step" not in vars(scheduler)


def test_blocks_are_counted_in_both_transformers():
    pipe = wan_pipeline(two_transformers=True)
    with lvsa.enable(pipe, **SIZE) as session:
        assert session.blocks == 4
        processors = {
            id(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")
        }
        assert len(processors) > 1, "cross-attention keeps its own processor"


def test_a_pipeline_without_attention_to_patch_is_an_error(monkeypatch):
    from lvsa.adapters.wan import WanAdapter

    monkeypatch.setattr(WanAdapter, "attention_modules", lambda self, transformer: iter(()))
    with refuses(LVSAError, "'wan'", "WanPipeline"):
        lvsa.enable(wan_pipeline(), **SIZE)


def test_fused_projections():
    pipe = wan_pipeline()
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS):
        expected = wan_latents(pipe)
    for block in pipe.transformer.blocks:
        block.attn1.fuse_projections()
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS):
        torch.testing.assert_close(wan_latents(pipe), expected, rtol=1e-5, atol=1e-5)


def test_projections_fused_after_enabling_are_an_error():
    """They bring the stock processor back, which would run dense without a word."""
    pipe = wan_pipeline()
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS):
        attention = pipe.transformer.blocks[0].attn1
        attention.set_processor(type(attention)._default_processor_cls())
        with refuses(LVSAError, "blocks.0.attn1", "WanAttnProcessor"):
            wan_latents(pipe)
