"""What is settled and refused before weights are loaded, and settings that change nothing."""

import json
import logging
import shutil

import pytest
import torch
from PIL import Image

from lvsa.errors import (
    BackendUnavailable,
    CheckpointError,
    DivisibilityError,
    GridError,
    LVSAError,
    UnknownModel,
)
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.loading.models import ASSETS, find_model
from lvsa.launch.loading.skeleton import skeleton_pipeline
from lvsa.launch.notes import without_effect
from lvsa.launch.report import report
from tests.support.errors import refuses
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_wan_family import skyreels, wan_22_i2v, wan_vace

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


@pytest.fixture
def copy(model, tmp_path):
    """A copy of the model's configs, to be broken."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(model, tmp_path / "copy", ignore=ignore)


@pytest.mark.parametrize("build", [wan_vace, wan_22_i2v, skyreels])
def test_limits_of_positions_are_those_of_every_family(build, tmp_path):
    folder = saved(build(), tmp_path / "model")
    image = tmp_path / "image.png"
    Image.new("RGB", (48, 32)).save(image)
    given = ["--image", str(image)] if build is wan_22_i2v else []
    assert job(folder, *given, "--num-frames", "1021", "--dry-run").grid.frames == 256
    with refuses(GridError, 257, 256, 1021):
        job(folder, *given, "--num-frames", "1025", "--dry-run")


def job(model, *more, world=1):
    size = ["--num-frames", "45", "--height", "32", "--width", "48"]
    return make_job(parse(["--model", str(model), "--prompt", "x", *size, *more]), world, CPU)


@pytest.mark.parametrize(
    ("more", "error", "named"),
    [
        (["--num-frames", "46"], GridError, [46, 45, 49]),
        (["--height", "40"], GridError, [40, 16, 32, 48]),
        # Rotary tables of 256 positions, for each axis.
        (["--num-frames", "1025"], GridError, [257, 256, 1021]),
        (["--height", "4112"], GridError, [257, 256, 4096]),
        (["--width", "8000"], GridError, [500, 256, 4096]),
        (["--steps", "1001"], LVSAError, [1001, 1000]),
        (["--backend", "npu"], BackendUnavailable, ["npu"]),
        (["--backend", "magic"], LVSAError, ["magic", "sdpa"]),
        (["--lvsa", "--window-size", "2"], LVSAError, [2, 4]),
        (["--lvsa", "--condition-latent-frames", "12"], LVSAError, [12, 11]),
        (["--riflex", "--riflex-ratio", "-1"], LVSAError, [-1.0]),
    ],
)
def test_what_cannot_work_is_said_before_weights_are_loaded(model, more, error, named):
    with refuses(error, *named):
        job(model, *more)


def test_divisibility_is_checked_before_weights_are_loaded(model):
    with refuses(DivisibilityError, 72, 5):
        job(model, world=5)
    assert job(model, "--dry-run", "--ranks", "5").world == 5, "a dry run tells instead"
    assert job(model, "--dry-run", world=3).world == 3


def test_a_plan_may_be_for_a_machine_with_other_kernels(model, caplog):
    planned = job(model, "--backend", "npu", "--dry-run")
    assert planned.config.attention.backend == "npu"
    assert "npu" in caplog.text
    line = next(line for line in report(planned).splitlines() if line.startswith("kernel "))
    assert "npu" in line and "this machine" in line


def test_the_kernel_is_named(model):
    for more, kernel in (((), "auto: sdpa"), (("--backend", "math"), "math")):
        planned = job(model, *more)
        assert planned.kernel.startswith(kernel)
        assert f"kernel     {planned.kernel}" in report(planned)


def test_a_plan_predicts_for_a_gpu_that_is_named(model):
    flags = ("--dry-run", "--dtype", "bfloat16", "--ranks", "2", "--lvsa", "--hardware")
    text = report(job(model, *flags, "h100"))
    assert "predicted" in text and "H100" in text and "not measured" in text and "dense" in text
    assert "predicted" not in report(job(model, *flags[:-1]))
    assert "float32" in report(job(model, "--dry-run", "--hardware", "a100")).splitlines()[-1]
    with refuses(LVSAError, "h101", "h100"):
        job(model, *flags, "h101")


def test_images_and_videos_go_to_pipelines_that_take_them(model, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    with refuses(LVSAError, "--image", "WanPipeline"):
        job(model, "--image", str(tmp_path / "red.png"))
    for kind, file in (("image", "none.png"), ("video", "none.mp4")):
        with refuses(LVSAError, tmp_path / file):
            job(model, f"--{kind}", str(tmp_path / file))


def test_no_frames_are_not_all_frames(model):
    with refuses(LVSAError, "--num-frames", 0, 1):
        job(model, "--num-frames", "0")


@pytest.mark.parametrize(
    ("name", "named"),
    [("/nowhere/at/all", ["/nowhere/at/all"]), ("tiny-wam", ["tiny-wan"]),
     ("..", ["model_index.json"]), ("", ["model_index.json"]), ("~nobody/model", ["~nobody"]),
     ("/" + "x" * 5000, ["x" * 5000])],
)  # fmt: skip
def test_models_that_are_not_there(name, named):
    with refuses(UnknownModel, "--model", *named):
        find_model(name)


def test_a_repository_without_an_index(monkeypatch, tmp_path):
    """The repository that the authors published, beside the one in diffusers' format."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    with refuses(UnknownModel, "Wan-AI/Wan2.1-T2V-14B", "model_index.json", "-Diffusers"):
        find_model("Wan-AI/Wan2.1-T2V-14B")


def test_the_revision_of_a_hub_model_is_its_commit(monkeypatch, model, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(model, tmp_path / "snapshots" / commit)
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = find_model("org/name", "v1")
    assert asked == [("org/name", "v1")] and source.on_hub and source.revision == commit


def test_the_model_that_comes_along_is_a_checkpoint_like_others(monkeypatch):
    monkeypatch.chdir(ASSETS.parent)
    by_name, by_path, whole = (
        make_job(parse(["--model", name, "--prompt", "x"]), 1, CPU)
        for name in ("tiny-wan", "assets/tiny-wan", str(ASSETS / "tiny-wan"))
    )
    assert by_name.request == by_path.request == whole.request
    assert (by_name.request.height, by_name.request.steps) == (64, 16)
    assert not by_name.source.on_hub


def test_an_unknown_checkpoint_takes_after_its_family(model, caplog):
    caplog.set_level(logging.INFO, "lvsa")
    request = job(model).request
    assert (request.steps, request.fps) == (50, 16)
    assert "Wan 2.1 T2V 1.3B" in caplog.text


INDEXES = {
    "no JSON": ("{", CheckpointError, ["model_index.json"]),
    "deep": ("[" * 100_000, CheckpointError, ["model_index.json"]),
    "a list": ("[1]", CheckpointError, ["_class_name"]),
    "no class": ("{}", CheckpointError, ["_class_name"]),
    "a number for a class": ('{"_class_name": 3}', CheckpointError, ["_class_name"]),
    "no UTF-8": (b"\xff", CheckpointError, ["model_index.json"]),
    "a part of three": (
        '{"_class_name": "WanPipeline", "vae": [1, 2, 3]}', CheckpointError, ["vae"],
    ),
    "a part that is a number": (
        '{"_class_name": "WanPipeline", "transformer_2": 3}', CheckpointError, ["transformer_2"],
    ),
    "an unknown pipeline": ('{"_class_name": "NoPipeline"}', UnknownModel, ["NoPipeline"]),
    "no pipeline": ('{"_class_name": "__version__"}', UnknownModel, ["__version__"]),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEXES)
def test_a_broken_index_is_named(copy, case):
    content, error, named = INDEXES[case]
    (copy / "model_index.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with refuses(error, *named):
        job(copy)


def edited(copy, part, **entries):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = copy / part / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return copy


@pytest.mark.parametrize(
    ("part", "entries", "named"),
    [
        ("transformer", {"num_layers": 10**6}, ["transformer", "num_layers", 10**6, 1000]),
        ("transformer", {"num_layers": "two"}, ["transformer"]),
        ("transformer", {"num_layers": None}, ["transformer"]),
        ("transformer", {"attention_head_dim": 0}, ["attention_head_dim", 0, 1]),
        ("transformer", {"attention_head_dim": 1.5}, ["attention_head_dim", 1.5]),
        ("vae", {"scale_factor_temporal": 0}, ["scale_factor_temporal", 0, 1]),
        ("vae", {"scale_factor_spatial": {}}, ["scale_factor_spatial"]),
        ("vae", {"dim_mult": []}, ["vae"]),
        ("vae", {"scale_factor_spatial": []}, []),
        ("transformer", {"patch_size": [1]}, []),
        ("transformer", {"patch_size": 3}, ["transformer"]),
        ("transformer", {"num_attention_heads": 10**18}, ["transformer"]),
        ("vae", {"num_res_blocks": 10**7}, ["vae", "num_res_blocks", 10**7]),
        ("vae", {"dim_mult": [1] * 10**5}, ["vae", "dim_mult", 10**5]),
        ("scheduler", {"num_train_timesteps": 10**9}, ["scheduler", 10**9]),
    ],
)
def test_a_config_that_nothing_can_be_built_from_is_named(copy, part, entries, named):
    with refuses(CheckpointError, str(copy), *named):
        job(edited(copy, part, **entries))


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
def test_a_part_that_is_missing_or_no_json_is_named(copy, part):
    (config,) = (copy / part).glob("*config.json")
    config.write_text("{")
    with refuses(CheckpointError, part):
        job(copy)
    shutil.rmtree(copy / part)
    with refuses(CheckpointError, part):
        job(copy)


def test_a_class_that_diffusers_does_not_have_is_named(copy):
    index = json.loads((copy / "model_index.json").read_text())
    absent = {**index, "vae": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(absent))
    with refuses(CheckpointError, str(copy)):
        job(copy)
    index["scheduler"] = ["diffusers", "NoScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with refuses(CheckpointError, "scheduler", "NoScheduler"):
        skeleton_pipeline(find_model(str(copy)))


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        (["--rotate-keyframes"], "--rotate-keyframes"),
        (["--lvsa"], "--lvsa"),
        (["--lvsa", "--key-frame-interval", "16", "--sparsity-scale", "2"], "--sparsity-scale"),
        (["--exchange", "ring"], "--exchange ring"),
        (["--guidance", "1", "--negative-prompt", "dull"], "--negative-prompt"),
        (["--strength", "0.5"], "--strength"),
        (["--riflex-ratio", "2"], "--riflex-ratio"),
        (["--riflex-k", "4"], "--riflex-k"),
        (["--riflex", "--riflex-k", "1", "--dry-run"], "--riflex"),
        (["--ranks", "4"], "--ranks"),
        (["--timeout", "60"], "--timeout"),
        (["--prompt", ""], "--prompt"),
        (["--prompt", " \n\t\u3000"], "--prompt"),
        (["--revision", "main"], "--revision"),
        (["--dry-run", "--show-mask"], "--show-mask"),
        (["--hardware", "h100"], "--hardware"),
        (["--lvsa", "--key-frame-interval", "4", "--rotate-keyframes"], "--lvsa"),
        (["--lvsa", "--key-frame-interval", "16", "--window-size", "4", "--rotate-keyframes",
          "--steps", "1"], "--rotate-keyframes"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(model, more, setting):
    assert [note.split(":")[0] for note in without_effect(job(model, *more))].count(setting) == 1


def test_settings_with_effect_are_not_named(model):
    sparse = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
    assert without_effect(job(model, *sparse)) == []
