"""Every kind of Wan and SkyReels-V2: whole generations on 1 to 4 ranks, loaded from disk.

11 latent frames of 3 × 4 tokens: on 2, 3 and 4 ranks every cut falls inside a frame.
"""

from collections import Counter

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import lvsa
from lvsa.adapters import PIPELINES, adapter_for, get_adapter
from lvsa.adapters.install import watch
from lvsa.cp_plans import get_plan, plan_for
from lvsa.cp_plans.trial import validate_plan
from lvsa.errors import LVSAError, PlanError, SequenceError
from lvsa.processor import LVSAProcessor
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_wan_family import (
    KINDS,
    inputs,
    picture,
    transformer,
    vace_transformer,
    wan_vace,
)

FRAMES, LATENT_FRAMES, ROWS, COLUMNS = 41, 11, 3, 4
# No first frames: anchors are the keyframes and what the adapter adds.
SETTINGS = lvsa.LVSASettings(
    window_size=4, n_first_frames=0, key_frame_interval=16, rotate_keyframes=True
)
EXCHANGES = {
    "wan-2.1-i2v": [(2, "needed"), (3, "ring")],
    "wan-2.1-flf": [(4, "needed")],
    "wan-2.2-i2v": [(2, "ring"), (4, "all_gather")],
    "wan-2.2-ti2v": [(3, "needed"), (2, "all_gather")],
    "wan-vace": [(2, "all_gather"), (3, "needed"), (4, "ring")],
    "wan-v2v": [(3, "all_gather")],
    "skyreels": [(4, "ring")],
    "skyreels-i2v": [(2, "needed")],
}
CONDITIONED = {
    "wan-2.1-i2v": {0},
    "wan-2.1-flf": {0, LATENT_FRAMES - 1},
    "wan-2.2-i2v": {0},
    "wan-2.2-ti2v": {0},
    "wan-vace": set(),
    "wan-v2v": set(),
    "skyreels": set(),
    "skyreels-i2v": {0},
}


def size(kind):
    pixels = 32 if kind == "wan-2.2-ti2v" else 16
    return {"height": ROWS * pixels, "width": COLUMNS * pixels}


def generate(pipe, kind, steps=3, **more):
    pipe.set_progress_bar_config(disable=True)
    given = {**inputs(kind, FRAMES, **size(kind)), **size(kind), **more}
    return pipe(
        prompt="a red circle",
        negative_prompt="dull",
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **given,
    ).frames


def enable(pipe, kind, **more):
    return lvsa.enable(pipe, **{"num_frames": FRAMES, **size(kind), **more})


def sparse_generation(rank, world, folder, kind, exchange):
    pipe = DiffusionPipeline.from_pretrained(folder)
    with enable(pipe, kind, settings=SETTINGS, exchange=exchange) as session:
        assert not session.attention.pattern.is_dense
        return generate(pipe, kind)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where each kind of pipeline is saved."""
    root = tmp_path_factory.mktemp("wan-family")
    return {kind: str(saved(make(), root / kind)) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def one_process(folders):
    return {kind: sparse_generation(0, 1, folders[kind], kind, "needed") for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "world", "exchange"), [(kind, *run) for kind in KINDS for run in EXCHANGES[kind]]
)
def test_generation_is_the_same_on_any_ranks(kind, world, exchange, folders, one_process):
    for latents in run_ranks(world, sparse_generation, folders[kind], kind, exchange):
        torch.testing.assert_close(latents, one_process[kind], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_stock_attention_at_the_horizon_and_differs_from_it_beyond(kind, one_process):
    pipe = KINDS[kind]()
    stock = generate(pipe, kind)
    with enable(pipe, kind) as session:
        assert session.attention.pattern.is_dense
        torch.testing.assert_close(generate(pipe, kind), stock, rtol=1e-5, atol=1e-5)
    assert torch.equal(generate(pipe, kind), stock)
    assert (stock - one_process[kind]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_frames_are_anchors(kind):
    with enable(KINDS[kind](), kind, settings=SETTINGS) as session:
        pattern = session.attention.pattern
    assert set(pattern.fixed_anchors) == CONDITIONED[kind]
    always = set(np.flatnonzero(pattern.anchors.all(0)).tolist())
    assert always == CONDITIONED[kind]


def test_the_users_condition_frames_join_the_implied_ones():
    settings = lvsa.LVSASettings(
        n_first_frames=0, key_frame_interval=16, condition_latent_frames=(7,)
    )
    with enable(KINDS["wan-2.1-i2v"](), "wan-2.1-i2v", settings=settings) as session:
        assert session.attention.pattern.fixed_anchors == (0, 7)


def test_one_latent_frame_is_its_first_and_last():
    assert get_adapter("wan").condition_frames(KINDS["wan-2.1-flf"](), 1) == (0,)


def test_both_transformers_run_sparse(monkeypatch):
    """Each of them runs, all their attention is LVSA's, and each of them tells the result."""
    kind, names, forwards = "wan-2.2-i2v", ("transformer", "transformer_2"), Counter()
    pipe = KINDS[kind]()
    stock = generate(pipe, kind)
    with enable(pipe, kind, settings=SETTINGS) as session:
        for name in names:
            model = getattr(pipe, name)
            assert all(isinstance(b.attn1.processor, LVSAProcessor) for b in model.blocks)
            model.register_forward_hook(lambda *_, name=name: forwards.update([name]))
        sparse = generate(pipe, kind)
        assert set(forwards) == set(names)
        assert session.attention.received.calls == 2 * forwards.total()
    # A stock processor is refused before it runs; let it, to see what each transformer adds.
    monkeypatch.setattr(watch, "check_processors", lambda *_: None)
    for name in names:
        with enable(pipe, kind, settings=SETTINGS):
            getattr(pipe, name).set_attn_processor(WanAttnProcessor())
            mixed = generate(pipe, kind)
        assert (mixed - sparse).abs().max() > 1e-3
        assert (mixed - stock).abs().max() > 1e-3


def test_all_vace_attention_over_video_is_lvsa():
    pipe = wan_vace()
    with enable(pipe, "wan-vace") as session:
        model = pipe.transformer
        assert session.blocks == len(model.blocks) + len(model.vace_blocks) == 5
        for block in (*model.blocks, *model.vace_blocks):
            assert isinstance(block.attn1.processor, LVSAProcessor)
            assert not isinstance(block.attn2.processor, LVSAProcessor)


def vace_with_reference(rank, world):
    """Each reference image stands before the video as one more latent frame."""
    pipe = wan_vace()
    settings = lvsa.LVSASettings(
        window_size=4, n_first_frames=0, key_frame_interval=16, condition_latent_frames=(0,)
    )
    frames = {"num_frames": FRAMES - 4}
    given = {**inputs("wan-vace", FRAMES - 4, **size("wan-vace")), **frames}
    with enable(pipe, "wan-vace", settings=settings):
        return generate(pipe, "wan-vace", **given, reference_images=[picture(48, 64, 9)])


def test_vace_reference_images_are_latent_frames():
    alone = vace_with_reference(0, 1)
    assert alone.shape[2] == LATENT_FRAMES
    for latents in run_ranks(2, vace_with_reference):
        torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-5)


def test_reference_images_that_were_not_counted_are_an_error():
    pipe = wan_vace()
    with enable(pipe, "wan-vace"), refuses(SequenceError, 11, 12):
        generate(pipe, "wan-vace", reference_images=[picture(48, 64, 9)])


def test_the_plan_of_vace_fits_vace_alone():
    model, grid = vace_transformer(), FrameGrid(LATENT_FRAMES, ROWS, COLUMNS)
    assert plan_for(model) is get_plan("vace")
    validate_plan(model, get_plan("vace"), grid)
    with refuses(PlanError, "'vace_blocks.0'", "WanTransformer3DModel"):
        validate_plan(transformer(), get_plan("vace"), grid)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_horizon_of_unknown_sizes(kind):
    pipe = KINDS[kind]()
    adapter = adapter_for(type(pipe))
    horizon = 25 if "skyreels" in kind else 31 if "ti2v" in kind else 21
    assert adapter.known_model(pipe) is None
    assert adapter.training_horizon(pipe) == horizon


def test_video_to_video_takes_its_length_from_the_video():
    adapter, pipe = get_adapter("wan"), KINDS["wan-v2v"]()
    video = [picture(16, 16)] * 5
    given = {"num_frames": 5, "video": video, "prompt": "x"}
    assert adapter.call_arguments(pipe, given) == {"video": video, "prompt": "x"}
    assert given["num_frames"] == 5
    with refuses(LVSAError, 5, 9):
        adapter.call_arguments(pipe, {"num_frames": 9, "video": video})
    assert adapter.call_arguments(wan_pipeline(), {"num_frames": 9}) == {"num_frames": 9}


@pytest.mark.parametrize("name", [name for name in PIPELINES if "DiffusionForcing" in name])
def test_diffusion_forcing_is_refused_by_name(name):
    parts = KINDS["skyreels"]().components
    pipe = getattr(diffusers, name)(**parts)
    with refuses(LVSAError, name, "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"):
        lvsa.enable(pipe, num_frames=FRAMES, **size("skyreels"))


def test_block_causal_attention_is_refused():
    pipe = KINDS["skyreels"]()
    pipe.transformer._set_ar_attention(5)
    with refuses(LVSAError, "num_frame_per_block", 5, 1):
        enable(pipe, "skyreels")


def test_last_image_order_counts():
    """The two images of a first-last-frame model reach the attention in their order."""
    pipe, kind = KINDS["wan-2.1-flf"](), "wan-2.1-flf"
    given = inputs(kind, FRAMES, **size(kind))
    swapped = {"image": given["last_image"], "last_image": given["image"]}
    with enable(pipe, kind, settings=SETTINGS):
        assert (generate(pipe, kind) - generate(pipe, kind, **swapped)).abs().max() > 1e-3
