"""Follows docs/add-a-model.md to the letter, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lvsa.adapters import BUILT_IN, GROUP, adapter_for, get_adapter, known_adapters
from lvsa.adapters.base import ModelAdapter

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "add-a-model.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
FILES = {
    match[1]: code
    for language, code in BLOCKS
    if language == "python" and (match := re.match(r"# (\S+\.py)\n", code))
}
ENTRIES = [
    (match[1], match[2], code.removeprefix(match[0]))
    for language, code in BLOCKS
    if language == "python" and (match := re.match(r"# in (\S+\.py): (\w+)\n", code))
]
TESTS = [name for name in FILES if name.startswith("tests/")]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the package and of the tests' tools, with all that the guide says done to it."""
    root = tmp_path_factory.mktemp("guide")
    no_caches = shutil.ignore_patterns("__pycache__", "outputs")
    for name in ("lvsa", "adapters", "cp_plans", "tests/support"):
        shutil.copytree(ROOT / name, root / name, ignore=no_caches, symlinks=True)
    for name in ("tests/__init__.py", "tests/conftest.py", "tests/adapters/__init__.py"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name, code in FILES.items():
        assert not (root / name).exists(), f"{name} is part of the project already"
        (root / name).write_text(code)
    for name, table, lines in ENTRIES:
        path = root / name
        before, start, after = path.read_text().partition(f"\n{table}: dict[str, str] = {{\n")
        assert start, f"{name} has no table {table}"
        path.write_text(before + start + lines + after)
    return root


def test_the_guide_says_all_that_is_needed():
    assert set(FILES) == {
        "adapters/ltx.py",
        "cp_plans/ltx.py",
        "tests/adapters/test_ltx.py",
        "adapters/ltx_direct.py",
        "tests/adapters/test_ltx_direct.py",
    }
    assert [(name, table) for name, table, _ in ENTRIES] == [
        ("adapters/__init__.py", "BUILT_IN"),
        ("adapters/__init__.py", "PIPELINES"),
    ]
    assert len(FILES) + len(ENTRIES) == sum(language == "python" for language, _ in BLOCKS)


def test_every_file_and_name_that_the_guide_points_at_exists():
    for name in re.findall(r"`((?:adapters|cp_plans|lvsa|tests)/[\w./]+\.py)`", GUIDE):
        assert name in FILES or (ROOT / name).exists(), name
    named = re.findall(r"^- \*\*[^*]*\*\* \(`(\w+)`\)|^- `(\w+)` returns|`(\w+)` gets", GUIDE, re.M)
    methods = {name for names in named for name in names if name}
    assert {"extract_qkv", "apply_rotary", "condition_frames", "extract_encoder_qkv"} <= methods
    assert all(hasattr(ModelAdapter, name) for name in methods)


def test_what_the_guide_says_works(followed):
    # Nothing of this project's own pytest settings: the copy stands alone.
    alone = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(followed)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *alone, *TESTS],
        cwd=followed,
        env={**os.environ, "PYTHONPATH": str(followed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for test in TESTS:
        for name in re.findall(r"^def (test_\w+)", FILES[test], re.MULTILINE):
            assert f"PASSED {test}::{name}" in result.stdout


def test_the_guides_code_is_formatted(followed):
    ruff = [sys.executable, "-m", "ruff"]
    files = [str(followed / name) for name in FILES]
    config = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [*ruff, *command, *config, *files], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_an_adapter_in_a_package_of_its_own(tmp_path, monkeypatch):
    (toml,) = [code for language, code in BLOCKS if language == "toml"]
    project = tomllib.loads(toml)["project"]
    (entry,) = project["entry-points"][GROUP].items()
    module, _, attribute = entry[1].partition(":")
    one_module = (FILES["cp_plans/ltx.py"] + FILES["adapters/ltx.py"]).replace(
        "from lvsa.cp_plans.ltx import LTX\n", ""
    )
    (tmp_path / f"{module}.py").write_text(one_module)
    # What an installer leaves behind.
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry[0]} = {entry[1]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert entry[0] not in BUILT_IN
    assert entry[0] in known_adapters()
    for adapter in (get_adapter(entry[0]), adapter_for("LTXPipeline")):
        assert isinstance(adapter, ModelAdapter)
        assert type(adapter).__name__ == attribute and adapter.name == entry[0]
    sys.modules.pop(module)
