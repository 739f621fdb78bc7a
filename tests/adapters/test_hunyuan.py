"""HunyuanVideo 1.5, T2V and I2V: masked text in the attention, on 1 to 4 ranks."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from diffusers import ClassifierFreeGuidance, DiffusionPipeline
from diffusers.guiders import BaseGuidance

import lvsa
from lvsa.adapters import adapter_for
from lvsa.adapters.checkpoints.hunyuan15 import HORIZON
from lvsa.adapters.hunyuan15 import HunyuanVideo15Adapter
from lvsa.cp_plans import plan_for
from lvsa.cp_plans.trial import validate_plan
from lvsa.errors import LVSAError, PlanError, SequenceError
from lvsa.processor import LVSAProcessor
from lvsa.rope import apply_rotary_3d_cos_sin
from lvsa.shards import FrameGrid
from lvsa.text import valid_positions as positions
from tests.support.errors import refuses
from tests.support.plans import gather, hooks_of, split
from tests.support.ranks import run_ranks
from tests.support.tiny import saved
from tests.support.tiny_hunyuan import hunyuan_pipeline, hunyuan_transformer, picture, shortened

# 10 latent frames of 2 × 3 tokens: 2 ranks cut between frames, 3 and 4 ranks inside of them.
SIZE = {"num_frames": 37, "height": 32, "width": 48}
SETTINGS = lvsa.LVSASettings(
    window_size=4, n_first_frames=4, key_frame_interval=16, rotate_keyframes=True
)
# Texts of different lengths, one of them with letters to be drawn for the second encoder.
PROMPTS = ["a red circle", 'a much longer prompt, sign "STOP" here']
KINDS = ["t2v", "i2v"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        kind: saved(hunyuan_pipeline(image=kind == "i2v"), tmp_path_factory.mktemp(kind))
        for kind in KINDS
    }


def load(folder):
    pipe = shortened(DiffusionPipeline.from_pretrained(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, seed=0, prompt=PROMPTS, steps=2, size=SIZE, **arguments):
    if hasattr(pipe, "image_encoder"):
        size = {"num_frames": size["num_frames"], "image": picture(size["width"], size["height"])}
    return pipe(
        prompt=prompt,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(seed),
        **{"negative_prompt": ["dull"] * len(prompt), **size, **arguments},
    ).frames


def sparse_generation(rank, world, folder, exchange, seeds=(0,), adapter=None):
    pipe = load(folder)
    with lvsa.enable(
        pipe, **SIZE, settings=SETTINGS, exchange=exchange, adapter=adapter
    ) as session:
        assert not session.attention.pattern.is_dense
        assert len(hooks(pipe)) == (2 if world > 1 else 0)
        latents = [generate(pipe, seed=seed) for seed in seeds]
    assert hooks(pipe) == []
    return latents


def hooks(pipe):
    """Names of the modules that a context-parallel plan is at work on."""
    return [name for name in hooks_of(pipe.transformer) if name]


@pytest.fixture(scope="module")
def one_process(folders):
    return {kind: sparse_generation(0, 1, folders[kind], "needed")[0] for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "world", "exchange"),
    [
        ("t2v", 1, "ring"),
        ("t2v", 2, "all_gather"),
        ("t2v", 3, "ring"),
        ("t2v", 4, "needed"),
        ("i2v", 2, "ring"),
        ("i2v", 3, "needed"),
        ("i2v", 4, "all_gather"),
    ],
)
def test_generation_is_the_same_on_any_ranks(kind, world, exchange, folders, one_process):
    for (latents,) in run_ranks(world, sparse_generation, folders[kind], exchange):
        torch.testing.assert_close(latents, one_process[kind], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_stock_attention_at_the_horizon(kind, folders, one_process):
    pipe = load(folders[kind])
    stock = generate(pipe)
    with lvsa.enable(pipe, **SIZE) as session:
        assert session.attention.pattern.is_dense
        torch.testing.assert_close(generate(pipe), stock, **CLOSE)
    assert torch.equal(generate(pipe), stock), "the pipeline is its old self afterwards"
    assert (one_process[kind] - stock).abs().max() > 1e-3, "sparse differs from dense"


def test_both_guidance_passes_run_sparse(folders):
    """A guider at scale 1 runs one pass a step, at any other two; each meets the processor."""
    pipe = load(folders["t2v"])
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS) as session:
        generate(pipe)
        assert session.attention.received.calls == 2 * 2 * session.blocks
        pipe.guider = pipe.guider.new(guidance_scale=1.0)
        generate(pipe)
        assert session.attention.received.calls == (2 * 2 + 2) * session.blocks


def test_two_generations_equal_two_processes(folders, one_process):
    first, second = sparse_generation(0, 1, folders["i2v"], "needed", seeds=(0, 1))
    torch.testing.assert_close(first, one_process["i2v"], rtol=0, atol=0)
    (alone,) = sparse_generation(0, 1, folders["i2v"], "needed", seeds=(1,))
    torch.testing.assert_close(second, alone, rtol=0, atol=0)


# Text


def test_padding_reaches_no_video_whatever_its_number(folders):
    pipe = load(folders["t2v"])
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS):
        short = generate(pipe)
        pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 90, 60
        pipe.vision_num_semantic_tokens = 40
        torch.testing.assert_close(generate(pipe), short, **CLOSE)


def test_each_prompt_of_a_batch_has_its_own_mask(folders):
    pipe = load(folders["t2v"])
    noise = torch.randn(2, 4, 10, 2, 3, generator=torch.Generator().manual_seed(3))
    with lvsa.enable(pipe, **SIZE, settings=SETTINGS):
        together = generate(pipe, latents=noise)
        for i, prompt in enumerate(PROMPTS):
            alone = generate(pipe, prompt=[prompt], latents=noise[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


# Planted faults: what the tests above would let pass if it did not matter.


class WithoutOffset(HunyuanVideo15Adapter):
    """Rotates every rank's tokens as if they were the first of the video."""

    def apply_rotary(self, q, k, rotary_emb, local_seq, rank, world):
        first = tuple(table[:local_seq] for table in rotary_emb)
        return apply_rotary_3d_cos_sin(q, k, first, local_seq, 0, 1)


class WithoutText(HunyuanVideo15Adapter):
    """Drops what the attention made of the text."""

    def format_output(self, attn, hidden, encoder_output, encoder_seq_len, dtype):
        return super().format_output(
            attn, hidden, torch.zeros_like(encoder_output), encoder_seq_len, dtype
        )


def text_counted_by_every_rank(self, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvsa.attention.group_rank", lambda group: 0)
        return START_TEXT(self, *args)


START_TEXT = lvsa.LVSAttention._start_text
# Adapter, and what is planted where.
FAULTS = {
    "none": (None, None),
    "no offset": (WithoutOffset, None),
    "text without output": (WithoutText, None),
    "text counted by every rank": (
        None,
        (lvsa.LVSAttention, "_start_text", text_counted_by_every_rank),
    ),
    "padding attended": (None, (LVSAProcessor, "_valid_text", lambda self, mask: None)),
}


def faulty_generations(rank, world, folder):
    made = {}
    for fault, (adapter, planted) in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            if planted:
                patch.setattr(*planted)
            (made[fault],) = sparse_generation(
                rank, world, folder, "needed", adapter=adapter and adapter()
            )
    return made


def test_planted_faults_change_the_video(folders, one_process):
    made, _ = run_ranks(2, faulty_generations, folders["t2v"])
    torch.testing.assert_close(made.pop("none"), one_process["t2v"], **CLOSE)
    for fault, latents in made.items():
        assert (latents - one_process["t2v"]).abs().max() > 1e-3, fault


def test_valid_text_is_found_once_a_pass_and_prompt(folders, monkeypatch):
    """Of two steps, two passes and two blocks: the model makes its mask anew in every forward."""
    found = []
    monkeypatch.setattr("lvsa.masks.valid_positions", lambda m: found.append(m) or positions(m))
    pipe = load(folders["t2v"])
    with lvsa.enable(pipe, **SIZE):
        generate(pipe, steps=3)
        assert len(found) == 2
        generate(pipe, prompt=["another", "and another"])
        assert len(found) == 4


# Plan


@pytest.mark.parametrize("overrides", [{}, {"use_meanflow": True}, {"patch_size": 2}])
def test_plan_fits_and_a_wrong_one_does_not(overrides):
    transformer, grid = hunyuan_transformer(**overrides), FrameGrid(10, 2, 3, 16, 16, 4)
    plan = plan_for(transformer)
    validate_plan(transformer, plan, grid)
    wrong = {
        "transformer_blocks.0": {"hidden_states": split(dim=2), "temb": split()},
        "proj_in": gather(),
    }
    with refuses(PlanError, "'proj_in'", "proj_out"):
        validate_plan(transformer, replace(plan, splits=wrong), grid)
    del wrong["proj_in"]
    with refuses(PlanError, "'hidden_states'", 24, 2, 60, "'temb'", "(1, 24)", 3):
        validate_plan(transformer, replace(plan, splits=wrong), grid)


def test_another_length_than_enabled_is_an_error(folders):
    pipe = load(folders["t2v"])
    with lvsa.enable(pipe, **SIZE), refuses(SequenceError, 10, 37, 11, 41):
        generate(pipe, size={**SIZE, "num_frames": 41})


# What the pipelines imply


def test_facts_are_read_from_the_configs(folders):
    adapter = adapter_for("HunyuanVideo15Pipeline")
    pipe = load(folders["t2v"])
    assert adapter.grid(121, 64, 96, pipe) == FrameGrid(31, 4, 6, 16, 16, 4)
    assert adapter.training_horizon(pipe) == HORIZON == 33
    assert adapter.condition_frames(pipe, 31) == ()
    assert adapter.condition_frames(load(folders["i2v"]), 31) == (0,)
    for name in adapter.replicated_methods:
        assert any(hasattr(load(folders[kind]), name) for kind in KINDS), name


def test_the_image_of_i2v_is_an_anchor(folders):
    settings = lvsa.LVSASettings(window_size=4, n_first_frames=0, key_frame_interval=16)
    for kind, anchored in (("t2v", False), ("i2v", True)):
        with lvsa.enable(load(folders[kind]), **SIZE, settings=settings) as session:
            pattern = session.attention.pattern
            assert (pattern.fixed_anchors == (0,)) is anchored


# Arguments of the call


def test_guidance_scale_sets_a_guider_of_the_pipelines_own(folders):
    pipe = load(folders["t2v"])
    adapter, shared = adapter_for(type(pipe)), pipe.guider
    given = {"prompt": "x", "num_frames": 37, "guidance_scale": 3}
    assert adapter.call_arguments(pipe, given) == {"prompt": "x", "num_frames": 37}
    assert given["guidance_scale"] == 3
    assert pipe.guider.guidance_scale == pipe.guider.config.guidance_scale == 3.0
    assert pipe.guider is not shared and shared.guidance_scale == 6.0
    now = pipe.guider
    adapter.call_arguments(pipe, {"guidance_scale": 3.0})
    adapter.call_arguments(pipe, {})
    assert pipe.guider is now
    weaker = generate(pipe)
    pipe.guider = shared
    assert (generate(pipe) - weaker).abs().max() > 1e-3


class NoScale(BaseGuidance):
    _input_predictions: ClassVar = ["pred_cond"]


def disabled():
    guider = ClassifierFreeGuidance(guidance_scale=6.0)
    guider.disable()
    return guider


@pytest.mark.parametrize(
    ("guider", "names"), [(NoScale(), "NoScale"), (disabled(), "pipe.guider.enable()")]
)
def test_guidance_that_the_guider_cannot_give(guider, names, folders):
    pipe = load(folders["t2v"])
    pipe.guider = guider
    with refuses(LVSAError, 3.0, names):
        adapter_for(type(pipe)).call_arguments(pipe, {"guidance_scale": 3.0})


def test_i2v_takes_its_size_from_the_image(folders):
    pipe = load(folders["i2v"])
    adapter, image = adapter_for(type(pipe)), picture(480, 320)
    arguments = {"image": image, "num_frames": 37}
    for size in ({"height": 32, "width": 48}, {"height": None, "width": None}, {}):
        assert adapter.call_arguments(pipe, {**arguments, **size}) == arguments
    with refuses(LVSAError, "480 × 320", "48 × 32", "height 32"):
        adapter.call_arguments(pipe, {**arguments, "height": 48, "width": 48})
    with refuses(LVSAError, "image", "NoneType"):
        adapter.call_arguments(pipe, {"height": 32, "width": 48})
