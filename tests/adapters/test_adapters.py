"""Finding adapters and plans by name, by pipeline and through entry points; and their errors."""

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
from lvsa.adapters.wan import WanAdapter
from lvsa.cp_plans import BY_CLASS, PLANS, get_plan, plan_for
from lvsa.errors import GridError, LVSAError, PlanError, UnknownModel
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
    with pytest.raises(UnknownModel) as error:
        get_adapter("wann")
    message = str(error.value)
    assert message.startswith("no adapter named 'wann'; known: ")
    assert all(name in message for name in BUILT_IN)
    assert message.endswith("Did you mean 'wan'?")
    with pytest.raises(UnknownModel) as error:
        get_adapter("qqqqqqqq")
    assert "Did you mean" not in str(error.value)


def test_an_unknown_pipeline_lists_the_known_ones():
    with pytest.raises(UnknownModel) as error:
        adapter_for("NoSuchPipeline")
    message = str(error.value)
    assert message.startswith("no adapter serves NoSuchPipeline; known pipelines: ")
    assert all(name in message for name in PIPELINES)


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
    with pytest.raises(UnknownModel, match="adapters installed beside them: other"):
        adapter_for("NoSuchPipeline")
    with pytest.raises(UnknownModel, match="Did you mean 'other'"):
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
    with pytest.raises(LVSAError, match="adapter 'other' is a NoAdapter, not a ModelAdapter"):
        get_adapter("other")
    with pytest.raises(LVSAError, match="adapter 'other' is a NoAdapter, not a ModelAdapter"):
        adapter_for("OtherPipeline")


def modules_after(code):
    """Names of the modules that a fresh interpreter holds after some code."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_looking_up_names_imports_no_model():
    modules = modules_after("import lvsa.adapters\nlvsa.adapters.known_adapters()")
    assert "lvsa.adapters" in modules
    assert not [name for name in modules if name.startswith("lvsa.adapters.")]
    assert not modules & {"diffusers", "transformers", "lvsa.cp_plans"}


def test_finding_an_adapter_imports_no_other_family():
    loaded = modules_after("from lvsa.adapters import adapter_for\nadapter_for('WanPipeline')")
    families = {target.partition(":")[0] for target in BUILT_IN.values()}
    assert loaded & families == {"lvsa.adapters.wan"}


def grid(num_frames=9, height=32, width=32):
    return get_adapter("wan").grid(num_frames, height, width, wan_pipeline())


def test_a_grid_counts_latent_frames_and_tokens():
    found = grid(45, 32, 48)
    assert (found.frames, found.rows, found.columns) == (12, 2, 3)
    assert (found.pixels_per_row, found.pixels_per_column, found.temporal_factor) == (16, 16, 4)
    assert get_adapter("wan").patches_per_frame(32, 48, wan_pipeline()) == 6
    assert grid(1).frames == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_frames": 80}, r"80 frames are not 4k \+ 1, .*; nearest: 77 or 81"),
        ({"num_frames": 2}, r"2 frames are not 4k \+ 1, .*; nearest: 1 or 5"),
        ({"num_frames": 0}, r"0 frames are not 4k \+ 1, .*; nearest: 1$"),
        ({"num_frames": -7}, r"-7 frames are not 4k \+ 1, .*; nearest: 1$"),
        ({"height": 40}, "height is 40 pixels; .* multiple of 16 .*; nearest: 32 or 48"),
        ({"width": 500}, "width is 500 pixels; .* multiple of 16 .*; nearest: 496 or 512"),
        ({"width": 8}, "width is 8 pixels; .* multiple of 16 .*; nearest: 16$"),
        ({"height": 0}, "height is 0 pixels; .* multiple of 16 .*; nearest: 16$"),
    ],
)
def test_a_size_off_the_grid_names_the_nearest_that_fit(given, message):
    with pytest.raises(GridError, match=message):
        grid(**given)


def test_a_pipeline_without_a_transformer_is_an_error():
    pipe = wan_pipeline()
    pipe.transformer = None
    with pytest.raises(LVSAError, match="WanPipeline has no transformer to install LVSA on"):
        lvsa.enable(pipe, num_frames=9, height=32, width=32)


def test_every_planned_class_exists_and_has_its_plan():
    for name, plan in BY_CLASS.items():
        assert hasattr(diffusers, name)
        assert get_plan(plan) is PLANS[plan]


def test_an_unknown_plan_lists_the_known_ones():
    with pytest.raises(PlanError) as error:
        get_plan("wam")
    assert all(name in str(error.value) for name in PLANS)


class UnplannedTransformer:
    pass


def test_a_transformer_without_a_plan_is_an_error_that_shows_the_way():
    with pytest.raises(
        PlanError, match="no context-parallel plan for UnplannedTransformer"
    ) as error:
        plan_for(UnplannedTransformer())
    assert all(name in str(error.value) for name in BY_CLASS)
    assert "docs/add-a-model.md" in str(error.value)
    with pytest.raises(PlanError, match="UnplannedTransformer"):
        get_adapter("wan").model_plan(wan_pipeline(), UnplannedTransformer())


def test_a_subclass_of_a_planned_transformer_has_its_plan():
    model = type("WanTransformer3DModel", (UnplannedTransformer,), {})
    assert plan_for(type("Mine", (model,), {})()) is get_plan("wan")


def test_a_pipeline_chooses_the_plan_for_per_token_timesteps():
    for per_token, name in ((False, "wan"), (True, "wan-per-token-timesteps")):
        pipe = wan_pipeline(per_token_timesteps=per_token)
        assert get_adapter("wan").model_plan(pipe, pipe.transformer).name == name
