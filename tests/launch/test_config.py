"""The configuration: groups by subject, flat names, and what no setting may be."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.errors import LVSAError
from lvsa.launch.config import (
    ALIASES,
    AttentionConfig,
    GenerateConfig,
    OutputConfig,
    SamplingConfig,
    VideoConfig,
)
from lvsa.launch.fields import flattened
from lvsa.settings import LVSASettings
from tests.support.errors import refuses

FULL = GenerateConfig(
    video=VideoConfig(prompt="a: b", num_frames=161, image=Path("a b.png"), strength=0.5),
    sampling=SamplingConfig(steps=9, guidance=2.0, seed=2**63 - 1),
    attention=AttentionConfig(
        lvsa=True, settings=LVSASettings(window_size=8, condition_latent_frames=(0, 40))
    ),
    output=OutputConfig(output_dir=Path("out"), dry_run=True),
)


def test_as_dict_is_flat_and_plain():
    plain = FULL.as_dict()
    assert plain["num_frames"] == 161 and plain["condition_latent_frames"] == [0, 40]
    assert json.loads(json.dumps(plain)) == plain
    names = [field.name for field in flattened(FULL)]
    assert len(names) == len(set(names)) == len(plain), "a name stands in one group"
    assert not set(names) & set(ALIASES)


@pytest.mark.parametrize("config", [GenerateConfig(), FULL])
def test_from_dict_takes_what_as_dict_gave(config):
    assert GenerateConfig.from_dict(config.as_dict()) == config
    assert GenerateConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        "num_frames": st.none() | st.integers(1, 100_000),
        "guidance": st.none() | st.floats(-1e9, 1e9),
        "seed": st.integers(0, 2**63 - 1),
        "lvsa": st.booleans(),
        "dtype": st.sampled_from(["auto", "float16"]),
        "condition_latent_frames": st.lists(st.integers(0, 99)),
    },
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(VALUES)
def test_any_settings_come_back(values):
    config = GenerateConfig.from_dict(values)
    given_values = {name: value for name, value in values.items() if value is not None}
    assert given_values.items() <= config.as_dict().items()
    assert GenerateConfig.from_dict(config.as_dict()) == config


def test_none_is_the_default():
    assert GenerateConfig.from_dict(dict.fromkeys(FULL.as_dict())) == GenerateConfig()


@pytest.mark.parametrize("old", ALIASES)
def test_other_names_are_understood(old):
    values = {"schedule": "even", "condition_frames": [3], "boundary_ratio": 0.7, "from": "a.json"}
    value = values.get(old, 7)
    assert GenerateConfig.from_dict({old: value}) == GenerateConfig.from_dict({ALIASES[old]: value})
    assert GenerateConfig.from_dict({old.replace("_", "-"): value}) != GenerateConfig()


def test_automatic_keyframes_are_no_interval():
    for automatic in (True, False, None):
        assert GenerateConfig.from_dict({"auto_keyframes": automatic}) == GenerateConfig()
    with refuses(LVSAError, "auto_keyframes", "key_frame_interval", 16):
        GenerateConfig.from_dict({"auto_keyframes": True, "key_frame_interval": 16})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num-framse": 81}, ["num-framse", "num_frames"]),
        ({"xyzzy": 1}, ["xyzzy", "prompt", "seed"]),
        ({"steps": 4, "num_inference_steps": 5}, ["steps", "num_inference_steps"]),
        ({"num_frames": 1, "num-frames": 2}, ["num_frames", "num-frames"]),
        ({"num_frames": "81"}, ["num_frames", "81"]),
        ({"num_frames": 81.0}, ["num_frames", 81.0]),
        ({"num_frames": True}, ["num_frames", True]),
        ({"num_frames": [81]}, ["num_frames", 81]),
        ({"lvsa": 1}, ["lvsa", 1]),
        ({"lvsa": "yes"}, ["lvsa", "yes"]),
        ({"prompt": 5}, ["prompt", 5]),
        ({"output_dir": 5}, ["output_dir", 5]),
        ({"exchange": "pigeon"}, ["exchange", "pigeon", "needed", "ring", "all_gather"]),
        ({"exchange": ["ring"]}, ["exchange"]),
        ({"condition_latent_frames": 3}, ["condition_latent_frames", 3]),
        ({"condition_latent_frames": [3, "4"]}, ["condition_latent_frames", "4"]),
        ({"condition_latent_frames": [[3]]}, ["condition_latent_frames"]),
        ({"guidance": 10**400}, ["guidance"]),
        ({"guidance": {"scale": 3}}, ["guidance", "scale"]),
        ({"auto_keyframes": "yes"}, ["auto_keyframes", "yes"]),
    ],
)
def test_unknown_names_and_other_types(values, named):
    with refuses(LVSAError, *named):
        GenerateConfig.from_dict(values)


FLOATS = [field.name for field in flattened(FULL) if "float" in str(field.hint)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [n for n in FLOATS if n != "dtype"])
def test_numbers_are_finite(name, value):
    assert {"guidance", "strength", "sparsity_scale", "riflex_ratio", "timeout"} <= set(FLOATS)
    with refuses(LVSAError, f"--{name.replace('_', '-')}", str(value)):
        GenerateConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("seed", -1, 0),
        ("seed", 2**63, 2**63 - 1),
        ("num_frames", 0, 1),
        ("num_frames", 10**9, 100_000),
        ("height", 10**6, 16_384),
        ("width", -8, 1),
        ("steps", 0, 1),
        ("steps", 10**6, 10_000),
        ("fps", 0, 1),
        ("ranks", 10**6, 4_096),
        ("timeout", 0, 0.001),
        ("timeout", 1e12, 2_592_000),
    ],
)
def test_numbers_are_within_reason(name, value, nearest):
    with refuses(LVSAError, f"--{name.replace('_', '-')}", nearest):
        GenerateConfig.from_dict({name: value})
    assert GenerateConfig.from_dict({name: nearest}).as_dict()[name] == nearest


@pytest.mark.parametrize("text", ["\udce9", "a\0b"])
def test_texts_can_be_written(text):
    for name in ("prompt", "output_dir"):
        with refuses(LVSAError, f"--{name.replace('_', '-')}", repr(text)):
            GenerateConfig.from_dict({name: text})


def test_configurations_are_frozen():
    for group in (FULL, FULL.video, FULL.attention, FULL.attention.settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, dataclasses.fields(group)[0].name, None)
