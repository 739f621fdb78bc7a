"""CogVideoX: which lengths and sizes there are, and what its pipelines' calls take."""

import logging

import pytest
import torch

import lvsa
from lvsa.adapters import adapter_for
from lvsa.adapters.cogvideox import CogVideoXAdapter, decoded_frames
from lvsa.cp_plans import plan_for
from lvsa.cp_plans.trial import validate_plan
from lvsa.errors import DivisibilityError, GridError, LVSAError, SequenceError
from tests.support.errors import names, refuses
from tests.support.tiny_cogvideox import (
    KINDS,
    LONG,
    SIZE,
    cogvideox_pipeline,
    cogvideox_vae,
    enabled,
    generate,
    picture,
)


def test_vae_decodes_the_frames_that_the_grid_says():
    vae = cogvideox_vae().eval()
    with torch.no_grad():
        for latent in range(1, 8):
            decoded = vae.decode(torch.zeros(1, 4, latent, 2, 2)).sample.shape[2]
            assert decoded == decoded_frames(latent, 4)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("5b", (1, 9, 16)), ("1.5", (1, 9, 16)), ("5b-v2v", (9, 16)), ("1.5-v2v", (16,))],
)
def test_videos_come_back_as_long_as_asked(kind, lengths):
    pipe = cogvideox_pipeline(kind)
    size = {"height": 16, "width": 16}
    for length in lengths:
        with enabled(pipe, length, size=size) as session:
            video = generate(pipe, kind, length, size=size, steps=2, output_type="np")
            grid = session.attention.grid
        assert video.shape[1] == length == grid.video_frames(grid.frames)


@pytest.mark.parametrize(
    ("kind", "video", "tokens"),
    [
        ("2b", 49, 13),
        ("2b", 48, 12),
        ("5b", 97, 25),
        ("5b-v2v", 49, 13),
        ("1.5", 81, 11),
        ("1.5", 80, 10),
        ("1.5", 161, 21),
        ("1.5-i2v", 81, 11),
        ("1.5-v2v", 80, 10),
    ],
)
def test_frames_of_tokens(kind, video, tokens):
    pipe = cogvideox_pipeline(kind)
    adapter = adapter_for(type(pipe))
    grid = adapter.grid(video, 32, 96, pipe)
    assert (grid.frames, grid.rows, grid.columns) == (tokens, 2, 6)
    assert grid.video_frames(tokens) == video
    deep = kind.startswith("1.5")
    assert adapter.patch_size(pipe) == (2 if deep else 1, 2, 2)
    assert adapter.temporal_factor(pipe) == (8 if deep else 4)
    assert adapter.training_horizon(pipe) == (11 if deep else 13)
    assert adapter.condition_frames(pipe, tokens) == ((0,) if kind.endswith("i2v") else ())


@pytest.mark.parametrize(
    ("kind", "video", "nearest"),
    [
        ("2b", 45, (41, 48)),
        ("2b", 47, (41, 48)),
        ("5b", 50, (49, 56)),
        ("5b", 5, (1, 8)),
        ("2b", 0, (1,)),
        ("2b", -3, (1,)),
        ("1.5", 85, (81, 88)),
        ("1.5-v2v", 81, (80, 88)),
        ("1.5-v2v", 1, (8,)),
    ],
)
def test_lengths_off_the_grid_are_errors(kind, video, nearest):
    pipe = cogvideox_pipeline(kind)
    with refuses(GridError, video, *nearest):
        lvsa.enable(pipe, num_frames=video, **SIZE)


def test_the_pipeline_refuses_what_the_adapter_refuses_of_video_to_video():
    pipe = cogvideox_pipeline("1.5-v2v")
    with pytest.raises(ValueError) as caught:
        generate(pipe, "1.5-v2v", 81)
    assert names(str(caught.value), 2) and not isinstance(caught.value, LVSAError)


def test_sizes_off_the_grid_are_errors():
    adapter = CogVideoXAdapter()
    pipe = cogvideox_pipeline("2b")
    with refuses(GridError, "height", 40, 16, 32, 48):
        adapter.grid(49, 40, 96, pipe)
    pipe = cogvideox_pipeline("5b-i2v")
    with refuses(GridError, "48 × 96", "32 × 96"):
        adapter.grid(97, 48, 96, pipe)
    pipe = cogvideox_pipeline("1.5")
    with refuses(GridError, "32 × 112", "height 32", "width 96"):
        adapter.grid(81, 32, 112, pipe)


def test_learned_positions_of_another_length_are_said(caplog):
    pipe = cogvideox_pipeline("5b-i2v")
    with caplog.at_level(logging.WARNING, logger="lvsa.adapters.cogvideox"):
        CogVideoXAdapter().grid(97, 32, 96, pipe)
        assert not caplog.messages
        CogVideoXAdapter().grid(193, 32, 96, pipe)
    assert "97" in caplog.text and "193" in caplog.text


def test_divisibility_names_lengths_that_the_vae_makes():
    """Five ranks and 12 tokens a frame: only multiples of 5 frames of tokens divide."""
    adapter = CogVideoXAdapter()
    for kind, given, lengths in (
        ("2b", 49, ("40 (10 latent)", "57 (15 latent)")),
        ("1.5", 81, ("73 (10 latent)", "113 (15 latent)")),
        ("1.5", 88, ("80 (10 latent)", "120 (15 latent)")),
        ("1.5-v2v", 88, ("80 (10 latent)", "120 (15 latent)")),
    ):
        pipe = cogvideox_pipeline(kind)
        grid = adapter.grid(given, 32, 96, pipe)
        with refuses(DivisibilityError, *lengths):
            lvsa.Shards(grid, 5)


def test_defaults_are_whole_frames_of_tokens():
    adapter = CogVideoXAdapter()
    for kind, expected in (("2b", (3, 1)), ("1.5", (2, 1))):
        factor = adapter.temporal_factor(cogvideox_pipeline(kind))
        made_of = lvsa.LVSASettings().pattern(40, factor, 11).parameters
        assert (made_of["window"], made_of["first_frames"]) == expected


def test_another_length_than_enabled_is_an_error():
    pipe = cogvideox_pipeline("1.5")
    with enabled(pipe, 81), refuses(SequenceError, 11, 81, 13, 97):
        generate(pipe, "1.5", 97)


def test_call_arguments():
    adapter = CogVideoXAdapter()
    text = cogvideox_pipeline("2b")
    given = {"prompt": "x", "num_frames": 49, "height": 32}
    # As many text tokens as the transformer has positions for.
    length = {"max_sequence_length": text.transformer.config.max_text_seq_length}
    assert adapter.call_arguments(text, given) == {**given, **length}
    video = cogvideox_pipeline("5b-v2v")
    pictures = [picture(16, 16)] * 9
    made = adapter.call_arguments(video, {"prompt": "x", "video": pictures, "num_frames": 9})
    assert made == {"prompt": "x", "video": pictures, **length}
    with refuses(LVSAError, "CogVideoXVideoToVideoPipeline"):
        adapter.call_arguments(video, given)
    with refuses(GridError, 9, 49):
        adapter.call_arguments(video, {**given, "video": pictures})


@pytest.mark.parametrize("kind", KINDS)
def test_plan_fits(kind):
    pipe = cogvideox_pipeline(kind)
    grid = CogVideoXAdapter().grid(LONG[kind], 32, 96, pipe)
    validate_plan(pipe.transformer, plan_for(pipe.transformer), grid)
