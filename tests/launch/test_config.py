"""Flags, files, inputs, outputs: everything that is settled around a generation."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lvsa.adapters.known import Defaults
from lvsa.errors import BackendUnavailable, DivisibilityError, GridError, LVSAError, UnknownModel
from lvsa.keyframes import published
from lvsa.launch.config import GenerateConfig, parse
from lvsa.launch.job import make_job, without_effect
from lvsa.launch.meter import StepTimer
from lvsa.launch.models import find_model
from lvsa.launch.picture import draw_pattern
from lvsa.launch.runtime import pick_device, start
from lvsa.pattern import dense
from lvsa.settings import LVSASettings
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def job(model, *more, world=1):
    size = ["--num-frames", "45", "--height", "32", "--width", "48"]
    return make_job(parse(["--model", model, "--prompt", "x", *size, *more]), world, CPU)


def test_flags_make_the_config():
    config = parse(["--lvsa", "--rotate-keyframes", "--window-size", "8", "--num-frames", "161",
                    "--condition-frames", "0", "40", "--exchange", "ring"])  # fmt: skip
    assert config.lvsa and config.num_frames == 161 and config.exchange == "ring"
    assert config.attention == LVSASettings(
        rotate_keyframes=True, window_size=8, condition_frames=(0, 40)
    )


def test_help_gives_units(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--config FILE.yaml",
        "video frames",
        "Height in pixels",
        "seconds",
        "--keyframe-placement",
    ):
        assert word in text


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        "prompt: -a dash first\nlvsa: true\nrotate-keyframes: true\nnum_frames: 161\n"
        "condition_frames: [0, 3]\nseed: 5\nheight: null\n"
    )
    config = parse(["--config", str(file), "--seed", "7", "--no-rotate-keyframes"])
    assert config.prompt == "-a dash first" and config.lvsa and config.num_frames == 161
    assert config.seed == 7 and not config.attention.rotate_keyframes and config.height is None
    assert config.attention.condition_frames == (0, 3)
    assert parse([f"--config={file}"]).seed == 5


def test_print_config_is_a_config_file(tmp_path, capsys):
    given = ["--lvsa", "--seed", "3", "--prompt", "a: b", "--condition-frames", "2", "--steps", "9"]
    with pytest.raises(SystemExit) as exit_:
        parse([*given, "--print-config"])
    assert exit_.value.code == 0
    file = tmp_path / "job.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]) == parse(given)
    assert yaml.safe_load(file.read_text()) == parse(given).as_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "must be a mapping"), ("a: [", "is not YAML"), (None, "No such file")],
)
def test_a_broken_config_file(tmp_path, content, message):
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LVSAError, match=message):
        parse(["--config", str(file)])
    with pytest.raises(LVSAError, match="--config needs the name"):
        parse(["--config"])


@pytest.mark.parametrize("arguments", [["--heigth", "3"], ["--exchange", "pigeon"]])
def test_unknown_flags_and_values_exit_with_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(arguments)
    assert exit_.value.code == 2
    (tmp_path / "job.yaml").write_text(f"{arguments[0][2:]}: {arguments[1]}\n")
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", str(tmp_path / "job.yaml")])
    assert exit_.value.code == 2, "a file is checked like flags"


def test_help_models_lists_defaults(capsys):
    with pytest.raises(SystemExit):
        parse(["--help-models"])
    table = capsys.readouterr().out
    assert "tiny-wan" in table and "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in table
    assert "480×832" in table and "horizon" in table


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--num-frames", "46"], GridError, "46 frames are not 4k [+] 1.*nearest: 45 or 49"),
        (["--height", "40"], GridError, "height is 40 pixels; it must be a multiple of 16"),
        (["--backend", "flex"], BackendUnavailable, "flex"),
        (["--backend", "flashinfer"], BackendUnavailable, "flashinfer"),
        (["--backend", "magic"], LVSAError, "unknown backend 'magic'; known: sdpa"),
        (["--lvsa", "--window-size", "2"], LVSAError, "less than one latent frame of 4"),
        (["--steps", "0"], LVSAError, "--steps is 0; it must be at least 1"),
        (["--fps", "0"], LVSAError, "--fps is 0; it must be at least 1"),
        (["--lvsa", "--condition-frames", "12"], LVSAError, r"allowed: 0 … 11"),
    ],
)
def test_what_cannot_work_is_said_before_weights_are_loaded(model, more, error, message):
    with pytest.raises(error, match=message):
        job(model, *more)


def test_divisibility_is_checked_before_weights_are_loaded(model):
    with pytest.raises(DivisibilityError, match="do not divide by 5 ranks"):
        job(model, world=5)
    assert job(model, "--dry-run", "--ranks", "5").world == 5, "a dry run tells instead"


def test_a_repository_without_an_index(monkeypatch, tmp_path):
    """The repository that the authors published, beside the one in diffusers' format."""
    monkeypatch.setattr("lvsa.launch.models.snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(UnknownModel, match=r"no model_index.json; .*often named …-Diffusers"):
        find_model("Wan-AI/Wan2.1-T2V-14B")


def test_images_and_videos_go_to_pipelines_that_take_them(model, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    with pytest.raises(LVSAError, match="--image: WanPipeline takes none; it takes a prompt only"):
        job(model, "--image", str(tmp_path / "red.png"))
    with pytest.raises(LVSAError, match="cannot be read as an image"):
        job(model, "--image", str(tmp_path / "none.png"))
    with pytest.raises(LVSAError, match="cannot be read as a video"):
        job(model, "--video", str(tmp_path / "none.mp4"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("/nowhere/at/all", "no such directory"), ("tiny-wam", "one of tiny-wan"),
     ("..", "has no model_index.json")],
)  # fmt: skip
def test_models_that_are_not_there(name, message):
    with pytest.raises(UnknownModel, match=message):
        find_model(name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rotate-keyframes"], "--rotate-keyframes: needs --lvsa"),
        (["--lvsa"], "--lvsa: every one of the 12 latent frames attends all others"),
        (["--lvsa", "--auto-keyframes", "--key-frame-interval", "16"], "--key-frame-interval: "),
        (["--lvsa", "--key-frame-interval", "16", "--sparsity-scale", "2"], "--sparsity-scale: "),
        (["--exchange", "ring"], "--exchange ring: one process exchanges nothing"),
        (["--guidance", "1", "--negative-prompt", "dull"], "--negative-prompt: --guidance is 1"),
        (["--strength", "0.5"], "--strength: needs --video"),
        (["--riflex-ratio", "2"], "--riflex-ratio: needs --riflex"),
        (["--ranks", "4"], "--ranks: needs --dry-run"),
        (["--prompt", ""], "--prompt: empty"),
        (["--dry-run", "--show-mask"], "--show-mask: --dry-run saves"),
        (["--lvsa", "--key-frame-interval", "4", "--rotate-keyframes"], "--lvsa: every one"),
        (["--lvsa", "--key-frame-interval", "16", "--window-size", "4", "--rotate-keyframes",
          "--steps", "1"], "--rotate-keyframes: one denoising step"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(model, more, message):
    assert any(found.startswith(message) for found in without_effect(job(model, *more)))


def test_settings_with_effect_are_not_named(model):
    sparse = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
    assert without_effect(job(model, *sparse)) == []


def test_an_unknown_checkpoint_takes_after_its_family(model, caplog):
    caplog.set_level(logging.INFO, "lvsa")
    request = job(model).request
    assert (request.steps, request.fps) == (50, 16)
    assert "is not a checkpoint known here" in caplog.text


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto", 3) == CPU
    with pytest.raises(LVSAError, match="sees no CUDA device"):
        pick_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", 1) == torch.device("cuda:1")
    with pytest.raises(LVSAError, match="this node has 2; start at most --nproc_per_node=2"):
        pick_device("cuda", 2)
    with pytest.raises(LVSAError, match="--timeout is 0"), start("cpu", 0):
        pass


def test_the_timer_times_the_last_generation():
    timer = StepTimer(CPU)
    for step in (0, 1, 2, 0, 1, 2, 3):
        timer(step)
    assert len(timer.seconds()) == 3


def test_the_picture_shows_what_is_attended(tmp_path):
    pattern = published(12, interval=4, window=1, rotate=True)
    draw_pattern(pattern, tmp_path / "a.png", world=3, steps=8)
    draw_pattern(dense(12), tmp_path / "b.png")
    images = [np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in "ab"]
    # The colour of an unattended frame fills much of the first and none of the second's matrix.
    light = [(np.abs(i.astype(int) - (0xF4, 0xF4, 0xF2)).max(-1) < 2).mean() for i in images]
    assert light[0] > 0.1 > light[1]


def test_defaults_are_frozen():
    with pytest.raises(AttributeError):
        Defaults(1, 1, 1, 1, 1.0, 1).steps = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        GenerateConfig().seed = 1  # type: ignore[misc]
    assert isinstance(GenerateConfig().output_dir, Path)
