"""A checkpoint's configs tell the engine's plugin what a loaded pipeline tells the adapters."""

import json
import subprocess
import sys

import pytest

from lvsa.adapters import adapter_for
from lvsa.adapters.install.grids import make_pattern
from lvsa.errors import CheckpointError, UnknownModel
from lvsa.serving.vllm_omni.checkpoint import served_model
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline
from tests.support.tiny_wan_family import KINDS

PIPELINES = {
    "wan": wan_pipeline,
    "hunyuan": hunyuan_pipeline,
    "hunyuan-i2v": lambda: hunyuan_pipeline(image=True),
    **{kind: KINDS[kind] for kind in ("wan-2.1-i2v", "wan-2.1-flf", "wan-2.2-ti2v", "wan-vace")},
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_horizon_and_pattern_are_those_of_the_loaded_pipeline(kind, tmp_path):
    pipe = PIPELINES[kind]()
    model = served_model(str(saved(pipe, tmp_path)))
    adapter = adapter_for(type(pipe))
    assert model.name == type(pipe).__name__
    assert model.adapter.name == adapter.name
    assert model.horizon == adapter.training_horizon(pipe)
    frames, settings = 2 * model.horizon, LVSASettings(rotate_keyframes=True)
    expected = make_pattern(adapter, pipe, FrameGrid(frames, 1, 1), settings)
    assert model.pattern(frames, settings) == expected
    assert not expected.is_dense


def test_entries_that_a_config_leaves_out_are_diffusers_defaults(tmp_path):
    """Early checkpoints of Wan have no scale factors in the VAE's config."""
    folder = saved(wan_pipeline(), tmp_path)
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text())
    del config["scale_factor_temporal"]
    file.write_text(json.dumps(config))
    model = served_model(str(folder))
    assert model.adapter.temporal_factor(model.pipe) == 4


def test_the_plugin_needs_no_newer_diffusers_than_the_engines():
    """vLLM-Omni's diffusers is older than the launcher's, whose sessions need the newer one."""
    program = "import sys, lvsa.serving.vllm_omni.attention; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "lvsa.adapters.install.grids" in loaded
    assert not {"lvsa.adapters.install.enable", "lvsa.adapters.install.prepared"} & {*loaded}


def test_the_bundled_model():
    model = served_model("assets/tiny-wan")
    assert (model.name, model.horizon) == ("WanPipeline", 21)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with refuses(UnknownModel, "FluxPipeline", "WanPipeline"):
        served_model(str(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_checkpoint_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with refuses(CheckpointError, tmp_path, "model_index.json"):
        served_model(str(tmp_path))
