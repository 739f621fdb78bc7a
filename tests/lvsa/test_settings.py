"""From settings in video frames to a pattern in latent frames."""

import logging

import pytest

from lvsa.errors import LVSAError
from lvsa.keyframes import published
from lvsa.pattern import Pattern
from lvsa.settings import LatentFrames, LVSASettings, flag, joined

T, FACTOR, HORIZON = 81, 4, 21


def pattern(**settings):
    return LVSASettings(**settings).pattern(T, FACTOR, HORIZON)


def test_defaults_are_the_published_pattern():
    assert pattern() == published(T, horizon=HORIZON, window=3, n_first=1)
    assert pattern().interval == 6


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"key_frame_interval": 16}, {"interval": 4}),
        ({"key_frame_interval": 16, "auto_keyframes": True}, {"horizon": 21}),
        ({"window_size": 0, "n_first_frames": 0}, {"horizon": 21, "window": 0, "n_first": 0}),
        ({"window_size": 20, "n_first_frames": 8}, {"horizon": 21, "window": 5, "n_first": 2}),
        ({"sparsity_scale": 2.0}, {"horizon": 21, "scale": 2.0}),
        ({"horizon": 33}, {"horizon": 33}),
        ({"rotate_keyframes": True}, {"horizon": 21, "rotate": True}),
        ({"condition_frames": (40,)}, {"horizon": 21, "condition_frames": (40,)}),
    ],
)
@pytest.mark.parametrize("placement", ["published", "even"])
def test_each_setting_arrives_in_the_pattern(settings, expected, placement):
    make = getattr(Pattern, placement)
    arguments = {"window": 3, "n_first": 1, **expected}
    got = pattern(keyframe_placement=placement, **settings)
    assert got == make(T, **arguments)
    assert got.placement == placement


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_latent_frames_round_down_and_say_so(factor, caplog):
    to_latent = LatentFrames(factor)
    with caplog.at_level(logging.WARNING, "lvsa"):
        assert [to_latent("window", n * factor, 0) for n in range(5)] == [0, 1, 2, 3, 4]
    assert not caplog.records


@pytest.mark.parametrize(
    ("factor", "window", "n_first"), [(1, 12, 4), (4, 3, 1), (5, 3, 1), (8, 2, 1), (16, 1, 1)]
)
def test_defaults_round_up_to_whole_latent_frames_and_never_fail(factor, window, n_first, caplog):
    with caplog.at_level(logging.WARNING, "lvsa"):
        got = LVSASettings().pattern(T, factor, HORIZON)
    assert (got.window, got.n_first) == (window, n_first)
    assert not caplog.records


def test_the_warning_names_what_is_lost(caplog):
    with caplog.at_level(logging.WARNING, "lvsa"):
        got = pattern(window_size=13, n_first_frames=7, key_frame_interval=18)
    assert (got.window, got.n_first, got.interval) == (3, 1, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "window size: 13 video frames are 3 latent frames of 4 (12 video frames)",
        "number of first frames: 7 video frames are 1 latent frames of 4 (4 video frames)",
        "keyframe interval: 18 video frames are 4 latent frames of 4 (16 video frames)",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_size": -1}, "window size is -1 video frames; it must be at least 0"),
        (
            {"n_first_frames": -4},
            "number of first frames is -4 video frames; it must be at least 0",
        ),
        ({"key_frame_interval": 0}, "keyframe interval is 0 video frames; it must be at least 1"),
        (
            {"window_size": 3},
            "window size is 3 video frames, less than one latent frame of 4; "
            "nearest value that works: 4",
        ),
        (
            {"n_first_frames": 1},
            "number of first frames is 1 video frames, less than one latent frame of 4; nearest",
        ),
        (
            {"key_frame_interval": 2},
            "keyframe interval is 2 video frames, less than one latent frame of 4; nearest",
        ),
        (
            {"keyframe_placement": "oven"},
            "unknown keyframe placement 'oven'; known: published, even",
        ),
        ({"sparsity_scale": 0.0}, "sparsity scale is 0.0; it must be finite and greater than 0"),
        ({"horizon": 0}, "training horizon is 0 latent frames; it must be at"),
        ({"condition_frames": (81,)}, r"condition frames \[81\] are not latent frames"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(LVSAError, match=message):
        pattern(**settings)


def test_settings_without_effect_are_named_with_the_reason():
    assert LVSASettings().without_effect() == []
    assert LVSASettings(sparsity_scale=2.0, auto_keyframes=True).without_effect() == []
    assert LVSASettings(key_frame_interval=16).without_effect() == []
    both = LVSASettings(key_frame_interval=16, auto_keyframes=True, sparsity_scale=2.0)
    assert both.without_effect() == ["--key-frame-interval: --auto-keyframes sets the interval"]
    fixed = LVSASettings(key_frame_interval=16, sparsity_scale=2.0, horizon=33)
    assert fixed.without_effect() == [
        "--sparsity-scale: --key-frame-interval sets the interval",
        "--horizon: --key-frame-interval sets the interval",
    ]


def test_settings_without_effect_really_have_none():
    assert pattern(key_frame_interval=16, auto_keyframes=True) == pattern()
    fixed = pattern(key_frame_interval=16)
    assert pattern(key_frame_interval=16, sparsity_scale=2.0) == fixed
    assert pattern(key_frame_interval=16, horizon=33) == fixed


def test_changed_names_what_differs_from_the_defaults():
    assert LVSASettings().changed() == []
    settings = LVSASettings(rotate_keyframes=True, sparsity_scale=1.0, keyframe_placement="even")
    assert settings.changed() == ["rotate_keyframes", "keyframe_placement"]


def test_flag():
    assert flag("key_frame_interval") == "--key-frame-interval"


def test_joined_cuts_long_lists():
    assert joined([1, 2, 3]) == "1, 2, 3"
    assert joined(range(20), most=3) == "0, 1, 2, … (20 in all)"
