"""Finding adapters by name, by pipeline and through entry points; and their errors."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import diffusers
import pytest

import lvsa
from lvsa import adapters
from lvsa.adapters import BUILT_IN, PIPELINES, adapter_for, get_adapter, known_adapters
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.checkpoints import all_checkpoints
from lvsa.adapters.wan import WanAdapter
from lvsa.errors import LVSAError, UnknownModel
from tests.support.errors import refuses
from tests.support.tiny import wan_pipeline


class OtherAdapter(WanAdapter):
    """What another package might bring."""

    name = "other"
    pipelines = ("OtherPipeline",)


class NoAdapter:
    pipelines = ("OtherPipeline",)


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages with these entry points are installed."""

    def install(**targets):
        found = [EntryPoint(name, value, adapters.GROUP) for name, value in targets.items()]
        asked = []

        def entry_points(*, group):
            asked.append(group)
            return found

        monkeypatch.setattr(adapters, "entry_points", entry_points)
        return asked

    return install


def test_every_table_entry_leads_to_an_adapter_that_agrees():
    for name in BUILT_IN:
        adapter = get_adapter(name)
        assert isinstance(adapter, ModelAdapter) and adapter.name == name
        for pipeline in adapter.pipelines:
            assert PIPELINES[pipeline] == name
            assert hasattr(diffusers, pipeline)
    for pipeline, name in PIPELINES.items():
        assert name in BUILT_IN
        assert adapter_for(pipeline).name == name


def test_each_call_makes_a_new_adapter():
    assert get_adapter("wan") is not get_adapter("wan")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with refuses(UnknownModel, "'wann'", *BUILT_IN, "Did you mean 'wan'?"):
        get_adapter("wann")
    with refuses(UnknownModel, "'qqqqqqqq'", *BUILT_IN) as caught:
        get_adapter("qqqqqqqq")
    assert "Did you mean" not in str(caught.value)


def test_an_unknown_pipeline_lists_the_known_ones():
    with refuses(UnknownModel, "NoSuchPipeline", *PIPELINES):
        adapter_for("NoSuchPipeline")


def test_a_subclass_of_a_known_pipeline_is_known():
    class MyWanPipeline(diffusers.WanPipeline):
        pass

    assert adapter_for(MyWanPipeline).name == "wan"
    assert adapter_for("WanPipeline").name == "wan"


def test_a_third_party_adapter_is_found_by_name_and_by_pipeline(installed):
    asked = installed(other="tests.adapters.test_adapters:OtherAdapter")
    assert type(get_adapter("other")).__name__ == "OtherAdapter"
    assert type(adapter_for("OtherPipeline")).__name__ == "OtherAdapter"
    assert known_adapters() == sorted([*BUILT_IN, "other"])
    assert set(asked) == {"lvsa.adapters"}
    with refuses(UnknownModel, "NoSuchPipeline", "other"):
        adapter_for("NoSuchPipeline")
    with refuses(UnknownModel, "'othr'", "'other'"):
        get_adapter("othr")


def test_a_third_party_adapter_works_through_the_library_call(installed):
    installed(other="tests.adapters.test_adapters:OtherAdapter")
    pipe = wan_pipeline()
    with lvsa.enable(pipe, num_frames=9, height=32, width=32, adapter="other") as session:
        assert session.adapter.name == "other"


def test_a_third_party_adapter_does_not_replace_a_built_in_one(installed):
    installed(wan="tests.adapters.test_adapters:OtherAdapter")
    assert type(get_adapter("wan")) is WanAdapter
    assert known_adapters() == sorted(BUILT_IN)


def test_a_third_party_object_that_is_no_adapter_is_an_error(installed):
    installed(other="tests.adapters.test_adapters:NoAdapter")
    for find, name in ((get_adapter, "other"), (adapter_for, "OtherPipeline")):
        with refuses(LVSAError, "'other'", "NoAdapter", "ModelAdapter"):
            find(name)


def test_checkpoints_of_a_third_party_adapter_are_known(installed):
    installed(other="tests.adapters.test_adapters:OtherAdapter")
    found = [model for name, model in all_checkpoints() if name == "other"]
    assert tuple(found) == OtherAdapter.known_models == WanAdapter.known_models


def modules_after(code):
    """Names of the modules that a fresh interpreter holds after some code."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_looking_up_names_imports_no_model():
    modules = modules_after("import lvsa.adapters\nlvsa.adapters.known_adapters()")
    assert "lvsa.adapters" in modules
    assert not [name for name in modules if name.startswith("lvsa.adapters.")]
    assert not modules & {"torch", "diffusers", "transformers", "lvsa.cp_plans"}


def test_finding_an_adapter_imports_no_other_family():
    loaded = modules_after("from lvsa.adapters import adapter_for\nadapter_for('WanPipeline')")
    families = {target.partition(":")[0] for target in BUILT_IN.values()}
    assert loaded & families == {"lvsa.adapters.wan"}


def test_a_pipeline_chooses_the_plan_for_per_token_timesteps():
    for per_token, name in ((False, "wan"), (True, "wan-per-token-timesteps")):
        pipe = wan_pipeline(per_token_timesteps=per_token)
        assert get_adapter("wan").model_plan(pipe, pipe.transformer).name == name


def test_the_package_has_no_other_names():
    with refuses(AttributeError, "'enabel'"):
        _ = lvsa.enabel
    assert lvsa.enable is adapters.install.enable.enable
    assert lvsa.LVSASession is adapters.install.session.LVSASession
