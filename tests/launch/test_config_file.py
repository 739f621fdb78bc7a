"""Settings in files: flat YAML in UTF-8, the JSON record of a video, nothing that could hide."""

import json
import os
import subprocess
import sys
import time

import pytest

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.config import GenerateConfig
from lvsa.launch.config_file import read_settings
from tests.support.errors import refuses
from tests.support.launched import ROOT


def read(tmp_path, content, name="job.yaml"):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_settings(file)


def test_plain_values(tmp_path):
    assert read(
        tmp_path,
        "# a comment\nprompt: a red circle\nseed: 012\nguidance: 1e-3\nstrength: .5\nlvsa: true\n"
        "height: null\nwidth: ~\nfps:\nnegative-prompt: ''\ntimeout: 6e2\nscale: -.inf\n"
        "condition_frames: [0, 3]\nlist:\n- 1\n- 2\n",
    ) == {
        "prompt": "a red circle",
        "seed": 12,
        "guidance": 0.001,
        "strength": 0.5,
        "lvsa": True,
        "height": None,
        "width": None,
        "fps": None,
        "negative-prompt": "",
        "timeout": 600.0,
        "scale": float("-inf"),
        "condition_frames": [0, 3],
        "list": [1, 2],
    }


@pytest.mark.parametrize(
    ("written", "prompt"),
    [("no", "no"), ("'5'", "5"), ('"a\\tb"', "a\tb"), ("-a dash first", "-a dash first"),
     ("|\n  two\n  lines", "two\nlines\n"), ("12:30:00", "12:30:00"), ("2026-11-25", "2026-11-25"),
     ("Ein Löwe, 狮子", "Ein Löwe, 狮子"), ("null and void", "null and void")],
)  # fmt: skip
def test_prompts_stay_as_they_are(tmp_path, written, prompt):
    assert read(tmp_path, f"prompt: {written}\n") == {"prompt": prompt}


@pytest.mark.parametrize("content", ["\ufeffseed: 3", '{"seed": 3}', "{seed: 3}", "{'seed': 3}"])
def test_byte_order_marks_and_braces(tmp_path, content):
    assert read(tmp_path, content) == {"seed": 3}


RECORD = {
    "config": GenerateConfig.from_dict({"prompt": "löwe", "seed": 5}).as_dict(),
    "request": {"steps": 3},
    "ranks": [{"seconds_per_step": [0.5] * 20_000}],
}


def test_the_record_of_a_video_is_a_configuration(tmp_path):
    content = json.dumps(RECORD)
    assert len(content) > 2**16
    for name in ("record.json", "record.txt"):
        assert read(tmp_path, content, name) == RECORD["config"]
        assert parse(["--config", str(tmp_path / name)]).video.prompt == "löwe"


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", ["num_frames: 81"]),
        ("# nothing\n", []),
        ("- a\n- b\n", []),
        ("just words", []),
        ("a: [", []),
        ("a: 1\nseed: 2\na: 3\n", ["a", "1", "3"]),
        ('{"seed": 1, "seed": 2}', ["seed"]),
        ("video:\n  prompt: x\n", ["line 2"]),
        ("condition_frames: [[1]]\n", ["line 1"]),
        ("condition_frames: [{a: 1}]\n", ["line 1"]),
        ("? [a, b]\n: c\n", ["line 1"]),
        ("seed: 1\nprompt: !!python/name:os.system\n", ["line 2", "python/name:os.system"]),
        ("seed: !!int '3'\n", ["line 1"]),
        ("a: &x 1\nb: *x\n", ["line 2", "x"]),
        (BOMB, ["line 2"]),
        ("<<: {a: 1}\n", ["line 1"]),
        ("a: 1\n---\nb: 2\n", []),
        ("[" * 50_000, []),
        ('{"a": ' * 50_000, []),
        ("a: " + "x" * 100_000, [65_536]),
        (b"prompt: \xff\xfe\n", []),
        ("prompt: a\0b\n", []),
        ("seed: " + "9" * 5_000, []),
    ],
)
def test_broken_files_are_named_within_a_second(tmp_path, content, named):
    started = time.process_time()
    with refuses(LVSAError, tmp_path / "job.yaml", *named):
        read(tmp_path, content)
    assert time.process_time() - started < 1


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with refuses(LVSAError, path):
            read_settings(path)


def test_an_error_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("num_frames: many\n")
    with refuses(LVSAError, file, "num_frames", "many"):
        parse(["--config", str(file)])


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.ISO-8859-1"])
def test_files_are_utf_8_in_any_locale(tmp_path, locale):
    file = tmp_path / "löwe.yaml"
    file.write_text("prompt: ein Löwe ✓\n", encoding="utf-8")
    program = "import sys; from lvsa.launch.generate import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "--config", str(file), "--print-config"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert "prompt: ein Löwe ✓\n" in done.stdout.decode()
