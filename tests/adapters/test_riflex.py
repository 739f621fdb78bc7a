"""RIFLEx: the formula by itself, on real rotary modules, and in generations on ranks."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15RotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

import lvsa
from lvsa.adapters.install.rope_patch import RIFLExOptions, apply_riflex
from lvsa.errors import LVSAError
from lvsa.riflex import adjusted_frequencies, exceeded, periods, temporal_frequencies
from tests.support.errors import names, refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_pipeline
from tests.support.tiny_cogvideox import TEXT_TOKENS, cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16)
# Longer than the horizons of 21, 33 and 13 latent frames: 24, 36 and 15 of 2 × 2 tokens.
LONG = {
    "wan": {"num_frames": 93, "height": 32, "width": 32},
    "hunyuan": {"num_frames": 141, "height": 32, "width": 32},
    "cogvideox": {"num_frames": 57, "height": 32, "width": 32},
}
MAKE = {
    "wan": lambda: wan_pipeline(two_transformers=True),
    "hunyuan": hunyuan_pipeline,
    "cogvideox": lambda: cogvideox_pipeline("5b"),
}
MORE = {
    "wan": {"max_sequence_length": 32, "guidance_scale": 1.0},
    "hunyuan": {},
    "cogvideox": {"max_sequence_length": TEXT_TOKENS, "guidance_scale": 3.0},
}


# The formula. The expected numbers are written out from the paper, without the package's code.


def paper(dim, base, k, test_frames):
    """θ_j of the paper in plain Python, component k replaced."""
    thetas = [1 / base ** (2 * (j - 1) / dim) for j in range(1, dim // 2 + 1)]
    if k is not None:
        thetas[k - 1] = 0.9 * 2 * math.pi / test_frames
    return torch.tensor(thetas, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dim", "base", "k", "period", "test_frames"),
    # HunyuanVideo, CogVideoX-5B and Wan, with the components and periods that the authors name.
    [(16, 256, 4, 50, 66), (16, 10000, 2, 20, 25), (44, 10000, 6, 51, 66), (44, 10000, 4, 22, 42)],
)
def test_formula(dim, base, k, period, test_frames):
    frequencies = temporal_frequencies(dim, base)
    torch.testing.assert_close(frequencies, paper(dim, base, None, 0), rtol=1e-12, atol=0)
    assert round(periods(frequencies)[k - 1].item()) == period
    adjusted = adjusted_frequencies(frequencies, k, test_frames)
    torch.testing.assert_close(adjusted, paper(dim, base, k, test_frames), rtol=1e-12, atol=0)
    assert torch.equal(frequencies, temporal_frequencies(dim, base)), "the argument is untouched"
    # Non-repetition: the video ends before the component is back where it began.
    assert adjusted[k - 1] * test_frames < math.tau < frequencies[k - 1] * test_frames


@pytest.mark.parametrize(("dim", "base", "k"), [(16, 256, 4), (16, 10000, 2), (44, 10000, 6)])
def test_it_applies_to_videos_longer_than_the_period(dim, base, k):
    frequencies = temporal_frequencies(dim, base)
    period = round(periods(frequencies)[k - 1].item())
    assert torch.equal(adjusted_frequencies(frequencies, k, period), frequencies)
    longer = adjusted_frequencies(frequencies, k, period + 1)
    torch.testing.assert_close(longer, paper(dim, base, k, period + 1), rtol=1e-12, atol=0)
    assert exceeded(frequencies, period) == [*range(1, k)]
    assert exceeded(frequencies, period + 1) == [*range(1, k + 1)]


@pytest.mark.parametrize(("k", "nearest"), [(0, 1), (-2, 1), (9, 8)])
def test_a_component_that_is_not_there(k, nearest):
    with refuses(LVSAError, "riflex_k", k, 8, nearest):
        adjusted_frequencies(temporal_frequencies(16, 256), k, 66)


@pytest.mark.parametrize("length", [0, -3, math.inf, math.nan])
def test_a_length_that_is_none(length):
    with refuses(LVSAError, length):
        adjusted_frequencies(temporal_frequencies(16, 256), 4, length)


# Rotary modules of the published sizes


def holder(rope):
    module = nn.Module()
    module.rope, module.config = rope, SimpleNamespace()
    return module


@pytest.mark.parametrize(
    ("rope", "shape", "dim", "base", "k", "horizon"),
    [
        (WanRotaryPosEmbed(128, (1, 2, 2), 1024), (1, 16, 81, 4, 6), 44, 10000, 6, 21),
        (WanRotaryPosEmbed(128, (1, 2, 2), 1024), (1, 16, 81, 4, 6), 44, 10000, 4, 21),
        (
            HunyuanVideo15RotaryPosEmbed(1, 1, [16, 56, 56], 256.0),
            (1, 65, 81, 2, 3),
            16,
            256,
            4,
            33,
        ),
    ],
)
def test_a_module_gets_the_papers_angles_and_its_own_back(rope, shape, dim, base, k, horizon):
    hidden = torch.zeros(shape)
    before = rope(hidden)
    asked = RIFLExOptions(k=4) if k == 4 else None
    patch = apply_riflex({"transformer": holder(rope)}, 81, horizon, asked)
    assert patch.test_frames == 81 and patch.components["transformer"].k == k
    after = rope(hidden)
    angles = torch.outer(torch.arange(81).double(), paper(dim, base, k, 81))
    for new, old, wave in zip(after, before, (torch.cos, torch.sin), strict=True):
        expected = wave(angles).repeat_interleave(2, dim=1).repeat_interleave(6, dim=0).float()
        table, own = new.view(81 * 6, -1), old.view(81 * 6, -1)
        torch.testing.assert_close(table[:, :dim], expected, rtol=0, atol=2e-6)
        changed = (table != own).any(0).nonzero().flatten().tolist()
        assert changed == [2 * k - 2, 2 * k - 1], "one component and nothing else"
    with refuses(LVSAError, "transformer"):
        apply_riflex({"transformer": holder(rope)}, 81, horizon)
    patch.remove()
    assert all(torch.equal(a, b) for a, b in zip(rope(hidden), before, strict=True))
    patch.remove()
    apply_riflex({"transformer": holder(rope)}, 81, horizon).remove()


def test_restored_tables_follow_the_module_to_another_device():
    rope = WanRotaryPosEmbed(128, (1, 2, 2), 64)
    patch = apply_riflex({"transformer": holder(rope)}, 60, 21)
    rope.to("meta")
    patch.remove()
    assert rope.freqs_cos.device.type == rope.freqs_sin.device.type == "meta"


def test_a_table_cut_before_riflex_is_an_error():
    rope = HunyuanVideo15RotaryPosEmbed(1, 1, [16, 56, 56], 256.0)
    rope.register_forward_hook(lambda module, args, output: tuple(x[:60] for x in output))
    apply_riflex({"transformer": holder(rope)}, 81, 33)
    with refuses(LVSAError, 60, 81, 6, "HunyuanVideo15RotaryPosEmbed"):
        rope(torch.zeros(1, 65, 81, 2, 3))


# Generations


def generate(pipe, family):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt="a red circle",
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **LONG[family],
        **MORE[family],
    ).frames


def long_generation(rank, world, family, exchange="needed", **options):
    pipe = MAKE[family]()
    with lvsa.enable(
        pipe,
        **LONG[family],
        settings=SETTINGS,
        exchange=exchange,
        riflex=True,
        riflex_k=1,
        **options,
    ) as session:
        assert not session.attention.pattern.is_dense
        return generate(pipe, family)


@pytest.fixture(scope="module")
def one_process():
    return {family: long_generation(0, 1, family) for family in MAKE}


@pytest.mark.parametrize(
    ("family", "world", "exchange"),
    [
        ("wan", 2, "needed"),
        ("wan", 4, "ring"),
        ("hunyuan", 2, "all_gather"),
        ("hunyuan", 3, "needed"),
        ("cogvideox", 2, "needed"),
        ("cogvideox", 3, "ring"),
    ],
)
def test_generation_is_the_same_on_any_ranks(family, world, exchange, one_process):
    for latents in run_ranks(world, long_generation, family, exchange):
        torch.testing.assert_close(latents, one_process[family], **CLOSE)


@pytest.mark.parametrize("family", MAKE)
def test_session_lowers_and_restores(family, one_process):
    pipe = MAKE[family]()
    own = generate(pipe, family)
    with lvsa.enable(pipe, **LONG[family], settings=SETTINGS) as session:
        without = generate(pipe, family)
        assert session.riflex is None
    assert (without - one_process[family]).abs().max() > 1e-3
    with lvsa.enable(pipe, **LONG[family], settings=SETTINGS, riflex=True, riflex_k=1) as session:
        assert [*session.riflex.components] == [*session.adapter.transformers(pipe)]
    assert torch.equal(generate(pipe, family), own)


@pytest.mark.parametrize("sized", [True, False])
def test_a_model_that_is_given_its_tables_gets_lowered_ones(sized):
    """Every forward, also the first of a session that does not know the length beforehand."""
    pipe, seen = cogvideox_pipeline("5b"), []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    generate(pipe, "cogvideox")
    (cos, _), *_ = seen
    seen.clear()
    size = LONG["cogvideox"] if sized else {}
    with lvsa.enable(pipe, **size, settings=SETTINGS, riflex=True, riflex_k=1):
        generate(pipe, "cogvideox")
    angles = torch.outer(torch.arange(15).double(), paper(4, 10000, 1, 15))
    assert len(seen) == 2
    for tables in seen:
        for table, wave in zip(tables, (torch.cos, torch.sin), strict=True):
            expected = wave(angles).repeat_interleave(2, dim=1).repeat_interleave(4, dim=0)
            torch.testing.assert_close(table[:, :4], expected.float(), rtol=0, atol=2e-6)
        assert torch.equal(tables[0][:, 4:], cos[:, 4:]) and not torch.equal(tables[0], cos)


@pytest.mark.parametrize("kind", ["2b", "1.5"])
def test_cogvideox_that_the_authors_name_no_component_for(kind):
    with refuses(LVSAError, "transformer", "CogVideoXTransformer3DModel"):
        lvsa.enable(cogvideox_pipeline(kind), riflex=True)


def test_ratio_is_of_the_training_horizon(one_process):
    # 24 latent frames of 21: the same by itself as by that ratio, and not by another.
    same = long_generation(0, 1, "wan", riflex_ratio=24 / 21)
    torch.testing.assert_close(same, one_process["wan"], **CLOSE)
    longer = long_generation(0, 1, "wan", riflex_ratio=4.0)
    assert (longer - one_process["wan"]).abs().max() > 1e-4


@pytest.mark.parametrize("ratio", [None, 1.0, 0.5])
def test_no_longer_than_trained_warns_once_and_changes_nothing(ratio, caplog):
    pipe = wan_pipeline(two_transformers=True)
    before = [t.rope.freqs_cos for t in (pipe.transformer, pipe.transformer_2)]
    frames = 81 if ratio is None else 93
    with (
        caplog.at_level(logging.WARNING, "lvsa"),
        lvsa.enable(
            pipe,
            num_frames=frames,
            height=32,
            width=32,
            riflex=True,
            riflex_ratio=ratio,
            riflex_k=1,
        ) as session,
    ):
        assert session.riflex.components == {}
        assert [t.rope.freqs_cos for t in (pipe.transformer, pipe.transformer_2)] == before
    (message,) = [r.getMessage() for r in caplog.records if r.name.endswith("rope_patch")]
    assert names(message, f"{21 * (ratio or 1):g}") and names(message, 21)


@pytest.mark.parametrize("frames", [42, 51])
def test_a_video_within_the_period_warns_once_and_names_others(frames, caplog):
    """Component 6 of Wan comes back after 51 latent frames; 4 and 5, after 22 and 33, would act."""
    rope = WanRotaryPosEmbed(128, (1, 2, 2), 1024)
    before = rope.freqs_cos
    with caplog.at_level(logging.WARNING, "lvsa"):
        patch = apply_riflex({"transformer": holder(rope)}, frames, 21)
    assert patch.components == {} and rope.freqs_cos is before
    (message,) = [record.getMessage() for record in caplog.records]
    assert all(names(message, value) for value in (6, 51, frames, "riflex_k", 4, 22, 5))


# Errors


@pytest.mark.parametrize("ratio", [0, -1.5, math.nan, math.inf])
def test_a_ratio_that_is_none(ratio):
    with refuses(LVSAError, "riflex_ratio", ratio, 2, 42):
        lvsa.enable(wan_pipeline(), **LONG["wan"], riflex=True, riflex_ratio=ratio)


@pytest.mark.parametrize(("name", "value"), [("riflex_ratio", 2.0), ("riflex_k", 4)])
def test_an_option_without_riflex(name, value):
    with refuses(LVSAError, name, value):
        lvsa.enable(wan_pipeline(), **LONG["wan"], **{name: value})


def test_a_model_of_which_no_component_is_known():
    """A temporal axis of 4 dimensions, with periods of 6.28 and 628 latent frames."""
    with refuses(LVSAError, "transformer", "riflex_k", 2, 6.28, 628):
        lvsa.enable(wan_pipeline(), **LONG["wan"], riflex=True)
    with refuses(LVSAError, "riflex_k", 3, 2):
        lvsa.enable(wan_pipeline(), **LONG["wan"], riflex=True, riflex_k=3)


def test_a_model_without_such_a_rope():
    pipe = wan_pipeline()
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    pipe.transformer.rope = nn.Identity()
    with refuses(LVSAError, "transformer", "WanTransformer3DModel", "WanRotaryPosEmbed"):
        lvsa.enable(pipe, **LONG["wan"], riflex=True)
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors
