"""Options of a server, in the engine's configuration and in variables of the published plugin."""

import json
from dataclasses import fields

import pytest

from lvsa.errors import LVSAError
from lvsa.serving.vllm_omni.options import ServingOptions, read_options
from lvsa.serving.vllm_omni.published import NEEDLESS, OPTIONS, read_environment
from lvsa.settings import LVSASettings
from tests.support.errors import refuses


def test_nothing_given_is_lvsas_own_defaults():
    assert read_options(None) == read_options({}) == ServingOptions()
    assert ServingOptions().changed() == []


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("rotate_keyframes", True, True),
        ("key_frame_interval", 16, 16),
        ("key_frame_interval", None, None),
        ("window_size", 8, 8),
        ("n_first_frames", 0, 0),
        ("sparsity_scale", 1, 1),
        ("sparsity_scale", 0.5, 0.5),
        ("horizon", 33, 33),
        ("keyframe_placement", "even", "even"),
        ("condition_latent_frames", [0, 3], (0, 3)),
        ("backend", "math", "math"),
        ("backend", "sdpa:flash", "sdpa:flash"),
    ],
)
def test_options_arrive_as_json_and_keep_their_types(name, given, expected):
    options = read_options(json.loads(json.dumps({name: given})))
    assert getattr(options, name) == expected
    assert type(getattr(options, name)) is type(expected)


def test_every_setting_of_lvsa_is_an_option():
    assert {field.name for field in fields(LVSASettings)} < {f.name for f in fields(ServingOptions)}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rotate_keyframe": True}, ("rotate_keyframe", "rotate_keyframes", "horizon")),
        ({"rotate_keyframes": "yes"}, ("rotate_keyframes", "yes", "true")),
        ({"rotate_keyframes": 1}, ("rotate_keyframes", 1, "true")),
        ({"window_size": True}, ("window_size", True, "whole number")),
        ({"window_size": 2.5}, ("window_size", 2.5, "whole number")),
        ({"sparsity_scale": "half"}, ("sparsity_scale", "half", "number")),
        ({"sparsity_scale": False}, ("sparsity_scale", False, "number")),
        ({"keyframe_placement": "odd"}, ("keyframe_placement", "odd", "published", "even")),
        ({"condition_latent_frames": 3}, ("condition_latent_frames", 3, "list")),
        ({"condition_latent_frames": [True]}, ("condition_latent_frames", "True", "list")),
        ({"backend": "cudnn"}, ("backend", "cudnn", "auto", "sdpa", "math")),
        ({"backend": None}, ("backend", None)),
        ("rotate_keyframes", ("rotate_keyframes", "lvsa")),
    ],
)
def test_other_options_are_refused(given, named):
    with refuses(LVSAError, *named):
        read_options(given)


def test_the_configuration_goes_before_the_environment():
    defaults, _ = read_environment({"LVSA_WINDOW_SIZE": "8", "LVSA_SPARSITY_SCALE": "0.5"})
    options = read_options({"window_size": 4}, defaults)
    assert (options.window_size, options.sparsity_scale) == (4, 0.5)


def test_published_variables_become_options():
    variables = {
        "LVSA_WINDOW_SIZE": "8",
        "LVSA_N_FIRST_FRAMES": "0",
        "LVSA_ROTATE_KEYFRAMES": "true",
        "LVSA_SPARSITY_SCALE": "0.75",
        "LVSA_REFERENCE_LATENT_FRAMES": "33",
        "LVSA_BACKEND": "flashinfer",
        "PATH": "/bin",
    }
    options, remarks = read_environment(variables)
    assert options == {
        "window_size": 8,
        "n_first_frames": 0,
        "rotate_keyframes": True,
        "sparsity_scale": 0.75,
        "horizon": 33,
        "backend": "flashinfer",
    }
    assert {remark.split("=")[0] for remark in remarks} == {*variables} - {"PATH"}
    assert "horizon" in next(r for r in remarks if "REFERENCE_LATENT_FRAMES" in r)
    assert {option for option, _ in OPTIONS.values()} <= {f.name for f in fields(ServingOptions)}


def test_an_interval_counts_where_keyframes_are_not_automatic():
    options, remarks = read_environment({"LVSA_KEY_FRAME_INTERVAL": "8"})
    assert "key_frame_interval" not in options
    assert any("LVSA_AUTO_KEYFRAMES" in remark for remark in remarks)
    by_hand = {"LVSA_KEY_FRAME_INTERVAL": "8", "LVSA_AUTO_KEYFRAMES": "0"}
    assert read_environment(by_hand)[0] == {"key_frame_interval": 8}
    assert read_environment({"LVSA_AUTO_KEYFRAMES": "0"})[0] == {"key_frame_interval": 16}


def test_a_config_in_json_overrides_the_variables():
    config = {"window_size": 4, "rotate_keyframes": False, "auto_keyframes": False}
    options, _ = read_environment({"LVSA_WINDOW_SIZE": "8", "LVSA_CONFIG": json.dumps(config)})
    assert options == {"window_size": 4, "rotate_keyframes": False, "key_frame_interval": 16}


@pytest.mark.parametrize("name", [*NEEDLESS, "NO_SUCH_THING"])
def test_what_is_needless_is_named_and_changes_nothing(name):
    options, (remark,) = read_environment({f"LVSA_{name}": "1"})
    assert options == {}
    assert f"LVSA_{name} has no effect: " in remark


def test_no_variables_no_remarks():
    assert read_environment({"HOME": "/root"}) == ({}, [])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LVSA_WINDOW_SIZE": "wide"}, ("LVSA_WINDOW_SIZE", "wide", "whole number")),
        ({"LVSA_SPARSITY_SCALE": "x"}, ("LVSA_SPARSITY_SCALE", "x", "number")),
        ({"LVSA_ROTATE_KEYFRAMES": "on"}, ("LVSA_ROTATE_KEYFRAMES", "on", "0 or 1")),
        ({"LVSA_AUTO_KEYFRAMES": ""}, ("LVSA_AUTO_KEYFRAMES", "0 or 1")),
        ({"LVSA_EXPAND_WINDOW": "0"}, ("LVSA_EXPAND_WINDOW", 0)),
        ({"LVSA_CONFIG": "{"}, ("LVSA_CONFIG", "{", "JSON")),
        ({"LVSA_CONFIG": "[1]"}, ("LVSA_CONFIG", "[1]")),
    ],
)
def test_variables_that_cannot_be_followed_are_refused(variables, named):
    with refuses(LVSAError, *named):
        read_environment(variables)
