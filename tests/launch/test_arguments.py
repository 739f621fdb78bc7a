"""The command line: flags, other names of them, files below them, help and mistakes."""

import re
import subprocess
import sys

import pytest
import yaml

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.config import GenerateConfig
from lvsa.settings import LVSASettings
from tests.support.errors import refuses
from tests.support.launched import ROOT


def test_flags_make_the_config():
    config = parse(["--lvsa", "--rotate-keyframes", "--window-size", "8", "--num-frames", "161",
                    "--condition-latent-frames", "0", "40", "--exchange", "ring"])  # fmt: skip
    assert config.attention.lvsa and config.video.num_frames == 161
    assert config.processes.exchange == "ring"
    assert config.attention.settings == LVSASettings(
        rotate_keyframes=True, window_size=8, condition_latent_frames=(0, 40)
    )
    assert parse([]) == GenerateConfig()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--num-inference-steps", "9"], ["--steps", "9"]),
        (["--guidance-scale=2.5"], ["--guidance", "2.5"]),
        (["--num_frames", "81"], ["--num-frames", "81"]),
        (["--schedule", "even"], ["--keyframe-placement", "even"]),
        (["--reference-latent-frames", "7"], ["--horizon", "7"]),
        (["--condition-frames", "1", "2"], ["--condition-latent-frames", "1", "2"]),
        (["--auto-keyframes"], []),
        (["--vae-parallel"], ["--vae-parallel", "on"]),
        (["--vae-parallel", "--steps", "9"], ["--steps", "9", "--vae-parallel=on"]),
        (["--no-vae-parallel"], ["--vae-parallel", "off"]),
        (["--prompt=--steps"], ["--prompt=--steps"]),
    ],
)
def test_other_names_of_flags(given, meant):
    assert parse(given) == parse(meant)
    assert (parse(given) == GenerateConfig()) is (not meant)


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        "prompt: -a dash first\nnegative_prompt:\nlvsa: true\nrotate-keyframes: true\n"
        "num_frames: 161\ncondition_latent_frames: [0, 3]\nseed: 5\nheight: null\n"
        "key_frame_interval: 16\n"
    )
    config = parse(["--config", str(file), "--seed", "7", "--no-rotate-keyframes"])
    assert config.video.prompt == "-a dash first" and config.video.negative_prompt == ""
    assert config.attention.lvsa and config.video.num_frames == 161 and config.video.height is None
    assert config.sampling.seed == 7 and not config.attention.settings.rotate_keyframes
    assert config.attention.settings.condition_latent_frames == (0, 3)
    assert parse([f"--config={file}"]).sampling.seed == 5
    assert parse([f"--config={file}"]).attention.settings.key_frame_interval == 16
    automatic = parse([f"--config={file}", "--auto-keyframes"])
    assert automatic.attention.settings.automatic


def test_an_empty_value_is_the_default(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("".join(f"{name}:\n" for name in GenerateConfig().as_dict()))
    assert parse(["--config", str(file)]) == GenerateConfig()


def test_print_config_is_a_config_file(tmp_path, capsys):
    given = ["--lvsa", "--seed", "3", "--prompt", "a: Löwe", "--steps", "9",
             "--condition-frames", "2"]  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        parse([*given, "--print-config"])
    assert exit_.value.code == 0
    file = tmp_path / "job.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]) == parse(given)
    assert yaml.safe_load(file.read_text()) == parse(given).as_dict()


def test_help_shows_subjects_in_order_and_units(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    flags = ["--config", "--prompt", "--model", "--steps", "--lvsa", "--output-dir", "--device"]
    places = [re.search(rf"^\W+{flag}\b", text, re.MULTILINE).start() for flag in flags]
    assert places == sorted(places)
    for unit in ("video frames", "Height in pixels", "seconds", "latent frames"):
        assert unit in text
    for other in ("--num-inference-steps", "--guidance-scale", "--auto-keyframes"):
        assert other in text


def test_help_models_lists_defaults(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help-models"])
    assert exit_.value.code == 0
    table = capsys.readouterr().out
    for fact in ("tiny-wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "480×832", "64×64"):
        assert fact in table


HEAVY = {"torch", "diffusers", "transformers", "matplotlib", "imageio", "PIL", "huggingface_hub"}
LIGHT = """
import sys
from lvsa.launch.generate import main
try:
    main(sys.argv[1:])
except SystemExit as exit_:
    print("exit", exit_.code, {name.split(".")[0] for name in sys.modules} & set(HEAVY))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--help-models"], 0), (["--print-config"], 0), (["--heigth", "3"], 2),
     (["--guidance", "nan"], 2), (["--config", "none.yaml"], 2)],
)  # fmt: skip
def test_help_and_mistakes_load_nothing_heavy(arguments, code):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.replace("HEAVY", repr(HEAVY)), *arguments],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"exit {code} set()", done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--heigth", "3"], ["--heigth", "--height"]),
        (["--exchange", "pigeon"], ["pigeon", "needed"]),
        (["--num-frames", "many"], ["--num-frames", "many"]),
        (["--seed", "-1"], ["--seed", -1, 0]),
        (["--timeout", "inf"], ["--timeout", "inf"]),
        (["--no-auto-keyframes"], ["--no-auto-keyframes"]),
        (["--config"], ["--config"]),
        (["--config="], ["--config"]),
        (["--config", "a.yaml", "--config=b.yaml"], ["--config a.yaml", "--config b.yaml"]),
        (["a stray word"], ["a stray word"]),
        (
            ["--auto-keyframes", "--key-frame-interval", "16"],
            ["--auto-keyframes", "--key-frame-interval"],
        ),
    ],
)
def test_mistakes_are_one_error(arguments, named, capsys):
    for quiet in (False, True):
        with refuses(LVSAError, *named):
            parse(arguments, quiet=quiet)
    assert capsys.readouterr() == ("", ""), "the error has said it"


@pytest.mark.parametrize("arguments", [["--help"], ["--help-models"], ["--print-config"]])
def test_other_ranks_are_quiet(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(arguments, quiet=True)
    assert exit_.value.code == 0
    assert capsys.readouterr() == ("", "")
