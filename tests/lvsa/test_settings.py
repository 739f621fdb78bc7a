"""From settings in video frames to a pattern in latent frames."""

import logging

import pytest

from lvsa.errors import LVSAError
from lvsa.keyframes import PLACEMENTS
from lvsa.settings import LatentFrames, LVSASettings, flag, joined
from tests.support.errors import refuses

T, FACTOR, HORIZON = 81, 4, 21


def pattern(**settings):
    return LVSASettings(**settings).pattern(T, FACTOR, HORIZON)


def test_defaults_are_the_published_pattern():
    assert pattern() == PLACEMENTS["published"](T, horizon=HORIZON, window=3, n_first=1)
    assert pattern().parameters["interval"] == 6
    assert LVSASettings().automatic


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"key_frame_interval": 16}, {"interval": 4}),
        ({"window_size": 0, "n_first_frames": 0}, {"horizon": 21, "window": 0, "n_first": 0}),
        ({"window_size": 20, "n_first_frames": 8}, {"horizon": 21, "window": 5, "n_first": 2}),
        ({"sparsity_scale": 2.0}, {"horizon": 21, "scale": 2.0}),
        ({"horizon": 33}, {"horizon": 33}),
        ({"rotate_keyframes": True}, {"horizon": 21, "rotate": True}),
        ({"condition_latent_frames": (40,)}, {"horizon": 21, "condition_frames": (40,)}),
    ],
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_setting_arrives_in_the_pattern(settings, expected, placement):
    arguments = {"window": 3, "n_first": 1, **expected}
    got = pattern(keyframe_placement=placement, **settings)
    assert got == PLACEMENTS[placement](T, **arguments)
    assert got.parameters["keyframe_placement"] == placement
    assert got != pattern(keyframe_placement=placement)


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_whole_latent_frames_are_kept_in_silence(factor, caplog):
    to_latent = LatentFrames(factor)
    with caplog.at_level(logging.WARNING, "lvsa"):
        assert [to_latent("window", n * factor, 0) for n in range(5)] == [0, 1, 2, 3, 4]
    assert not caplog.records


@pytest.mark.parametrize(
    ("factor", "window", "n_first"), [(1, 12, 4), (4, 3, 1), (5, 3, 1), (8, 2, 1), (16, 1, 1)]
)
def test_defaults_round_up_to_whole_latent_frames_and_never_fail(factor, window, n_first, caplog):
    with caplog.at_level(logging.WARNING, "lvsa"):
        got = LVSASettings().pattern(T, factor, HORIZON).parameters
    assert (got["window"], got["first_frames"]) == (window, n_first)
    assert not caplog.records


def test_the_warning_names_what_is_lost(caplog):
    with caplog.at_level(logging.WARNING, "lvsa"):
        got = pattern(window_size=13, n_first_frames=7, key_frame_interval=18).parameters
    assert (got["window"], got["first_frames"], got["interval"]) == (3, 1, 4)
    # Name, video frames, latent frames, factor, video frames that are left.
    assert [record.args[1:] for record in caplog.records] == [
        (13, 3, 4, 12),
        (7, 1, 4, 4),
        (18, 4, 4, 16),
    ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"window_size": -1}, ["window size", -1, 0]),
        ({"n_first_frames": -4}, ["number of first frames", -4, 0]),
        ({"key_frame_interval": 0}, ["keyframe interval", 0, 1]),
        ({"window_size": 3}, ["window size", 3, 4]),
        ({"n_first_frames": 1}, ["number of first frames", 1, 4]),
        ({"key_frame_interval": 2}, ["keyframe interval", 2, 4]),
        ({"keyframe_placement": "oven"}, ["oven", "published", "even"]),
        ({"sparsity_scale": 0.0}, ["sparsity scale", 0.0]),
        ({"horizon": 0}, ["training horizon", 0, 1]),
        ({"condition_latent_frames": (81,)}, [81, 80]),
    ],
)
def test_settings_out_of_range(settings, named):
    with refuses(LVSAError, *named):
        pattern(**settings)


def test_settings_without_effect_are_named_with_the_reason():
    assert LVSASettings().without_effect() == []
    assert LVSASettings(sparsity_scale=2.0).without_effect() == []
    assert LVSASettings(key_frame_interval=16).without_effect() == []
    fixed = LVSASettings(key_frame_interval=16, sparsity_scale=2.0, horizon=33)
    scale, horizon = fixed.without_effect()
    assert scale.startswith("--sparsity-scale") and horizon.startswith("--horizon")
    assert "--key-frame-interval" in scale and "--key-frame-interval" in horizon


def test_settings_without_effect_really_have_none():
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
