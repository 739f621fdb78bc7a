"""The one command for machines with a GPU says what it lacks, and runs all that it has."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.studies.bench import gpu
from tests.support.launched import python

ROOT = Path(__file__).parents[2]


def test_a_bare_python_is_told_which_wheels_to_bring() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "studies/bench/gpu.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert all(wheel in done.stderr for wheel in gpu.NEEDED.values())
    assert "pip download" in done.stderr and "--no-index" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails_nothing(caplog: Any) -> None:
    assert gpu.main() == 0
    assert torch.__version__ in caplog.text


def test_all_commands_run_and_a_failure_counts(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    assert gpu.run({"good": ["-c", "pass"], "bad": ["-c", "1/0"], "late": ["-c", "pass"]}) == 1
    for name, end in (("good", "done"), ("bad", "failed"), ("late", "done")):
        assert f"{name}: {end}" in caplog.text


def test_commands_name_scripts_and_flags_that_exist() -> None:
    for arguments in gpu.COMMANDS.values():
        if arguments[0] == "-m":
            continue
        done = python(["--help"], arguments[0])
        assert done.returncode == 0, done.stderr
        assert all(flag in done.stdout for flag in arguments if flag.startswith("--"))
