"""RIFLEx: the formula by itself, on real rotary modules, and in generations on ranks."""

import logging
import math

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15RotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

import lvsa
from lvsa.adapters.install.rope_patch import apply_riflex
from lvsa.errors import LVSAError
from lvsa.riflex import adjusted_frequencies, intrinsic_index, periods, temporal_frequencies
from tests.support.errors import names, refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16)
# Longer than the horizons of 21 and 33 latent frames: 24 and 36 of 2 × 2 tokens.
LONG = {
    "wan": {"num_frames": 93, "height": 32, "width": 32},
    "hunyuan": {"num_frames": 141, "height": 32, "width": 32},
}
MAKE = {"wan": lambda: wan_pipeline(two_transformers=True), "hunyuan": hunyuan_pipeline}


# The formula. The expected numbers are written out from the paper, without the package's code.


def paper(dim, base, k, test_frames):
    """θ_j of the paper in plain Python, component k replaced."""
    thetas = [1 / base ** (2 * (j - 1) / dim) for j in range(1, dim // 2 + 1)]
    if k is not None:
        thetas[k - 1] = 0.9 * 2 * math.pi / test_frames
    return torch.tensor(thetas, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dim", "base", "repetition", "k", "test_frames"),
    # HunyuanVideo, CogVideoX and Wan, with the components that the authors name.
    [(16, 256, 50, 4, 66), (16, 10000, 20, 2, 25), (44, 10000, 51, 6, 66)],
)
def test_formula(dim, base, repetition, k, test_frames):
    frequencies = temporal_frequencies(dim, base)
    torch.testing.assert_close(frequencies, paper(dim, base, None, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        periods(frequencies) * frequencies, torch.full((dim // 2,), math.tau).double()
    )
    assert intrinsic_index(frequencies, repetition) == k
    adjusted = adjusted_frequencies(frequencies, k, test_frames)
    torch.testing.assert_close(adjusted, paper(dim, base, k, test_frames), rtol=1e-12, atol=0)
    assert torch.equal(frequencies, temporal_frequencies(dim, base)), "the argument is untouched"
    # Non-repetition: the video ends before the component is back where it began.
    assert adjusted[k - 1] * test_frames < math.tau < frequencies[k - 1] * test_frames


def test_intrinsic_index_picks_the_nearest_period():
    frequencies = math.tau / torch.tensor([5.0, 10.0, 20.0, 40.0], dtype=torch.float64)
    assert [intrinsic_index(frequencies, n) for n in (1, 7, 8, 14, 16, 29, 31, 500)] == [
        *(1, 1, 2, 2, 3, 3, 4, 4)
    ]


def test_frequencies_are_never_raised():
    frequencies = temporal_frequencies(16, 256)  # component 4 has a period of 50.3 frames
    assert torch.equal(adjusted_frequencies(frequencies, 4, 45.2), frequencies)
    assert adjusted_frequencies(frequencies, 4, 45.3)[3] < frequencies[3]


@pytest.mark.parametrize("length", [0, -3, math.inf, math.nan])
def test_a_length_that_is_none(length):
    with refuses(LVSAError, length):
        adjusted_frequencies(temporal_frequencies(16, 256), 4, length)


# Rotary modules of the published sizes


def holder(rope):
    module = nn.Module()
    module.rope = rope
    return module


@pytest.mark.parametrize(
    ("rope", "shape", "dim", "base", "k", "horizon"),
    [
        (WanRotaryPosEmbed(128, (1, 2, 2), 1024), (1, 16, 81, 4, 6), 44, 10000, 6, 21),
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
    patch = apply_riflex({"transformer": holder(rope)}, 81, horizon)
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
    wan_only = {"max_sequence_length": 32, "guidance_scale": 1.0} if family == "wan" else {}
    return pipe(
        prompt="a red circle",
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **LONG[family],
        **wan_only,
    ).frames


def long_generation(rank, world, family, exchange="needed", **options):
    pipe = MAKE[family]()
    with lvsa.enable(
        pipe, **LONG[family], settings=SETTINGS, exchange=exchange, riflex=True, **options
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
    with lvsa.enable(pipe, **LONG[family], settings=SETTINGS, riflex=True) as session:
        assert [*session.riflex.components] == [*session.adapter.transformers(pipe)]
    assert torch.equal(generate(pipe, family), own)


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
            pipe, num_frames=frames, height=32, width=32, riflex=True, riflex_ratio=ratio
        ) as session,
    ):
        assert session.riflex.components == {}
        assert [t.rope.freqs_cos for t in (pipe.transformer, pipe.transformer_2)] == before
    (message,) = [r.getMessage() for r in caplog.records if r.name.endswith("rope_patch")]
    assert names(message, f"{21 * (ratio or 1):g}") and names(message, 21)


def test_a_length_without_repetition_warns_once(caplog):
    """Component 6 of Wan comes back after 51 latent frames, 45.9 with a tenth to spare."""
    rope = WanRotaryPosEmbed(128, (1, 2, 2), 1024)
    with caplog.at_level(logging.WARNING, "lvsa"):
        patch = apply_riflex({"transformer": holder(rope)}, 45, 21)
    assert patch.components == {}
    (message,) = [record.getMessage() for record in caplog.records]
    assert names(message, 45)


# Errors


@pytest.mark.parametrize("ratio", [0, -1.5, math.nan, math.inf])
def test_a_ratio_that_is_none(ratio):
    with refuses(LVSAError, "riflex_ratio", ratio, 2, 42):
        lvsa.enable(wan_pipeline(), **LONG["wan"], riflex=True, riflex_ratio=ratio)


def test_a_ratio_without_riflex():
    with refuses(LVSAError, "riflex_ratio", 2.0):
        lvsa.enable(wan_pipeline(), **LONG["wan"], riflex_ratio=2.0)


def test_a_model_without_such_a_rope():
    pipe = wan_pipeline()
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    pipe.transformer.rope = nn.Identity()
    with refuses(LVSAError, "transformer", "WanTransformer3DModel", "WanRotaryPosEmbed"):
        lvsa.enable(pipe, **LONG["wan"], riflex=True)
    assert [block.attn1.processor for block in pipe.transformer.blocks] == processors
