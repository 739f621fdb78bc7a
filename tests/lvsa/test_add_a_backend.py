"""Follows docs/add-a-backend.md to the letter, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lvsa.backends import BACKENDS, Backend, get_backend, known_backends
from lvsa.backends.registry import GROUP
from lvsa.layout import BlockLayout

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "add-a-backend.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
FILES = {match[1]: code for code in PYTHON if (match := re.match(r"# (\S+\.py)\n", code))}
ENTRIES = [
    (match[1], match[2], code.removeprefix(match[0]))
    for code in PYTHON
    if (match := re.match(r"# in (\S+\.py): (\w+)\n", code))
]
LAYERS = ("adapters", "cp_plans", "launch", "studies")
TEST = "tests/lvsa/test_backends_products.py"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the engine and of the tests' tools, with all that the guide says done to it."""
    root = tmp_path_factory.mktemp("guide")
    others = shutil.ignore_patterns("__pycache__", "assets", *LAYERS)
    shutil.copytree(ROOT / "lvsa", root / "lvsa", ignore=others)
    shutil.copytree(ROOT / "tests/support", root / "tests/support")
    for name in ("tests/__init__.py", "tests/lvsa/__init__.py"):
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
    assert set(FILES) == {"lvsa/backends/products.py", TEST}
    assert [(name, table) for name, table, _ in ENTRIES] == [
        ("lvsa/backends/registry.py", "BACKENDS")
    ]
    assert len(FILES) + len(ENTRIES) == len(PYTHON)


def test_every_name_that_the_guide_points_at_exists():
    for name in re.findall(r"`((?:lvsa|tests)/[\w./]+\.py)`", GUIDE):
        assert name in FILES or (ROOT / name).exists(), name
    fields = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", GUIDE, re.MULTILINE)
    named = {name for cell in fields for name in re.findall(r"\w+", cell)}
    assert named == {"tiles", "order", "common", "runs", "groups", "strips"}
    assert named <= {*BlockLayout.__dataclass_fields__}
    for method in ("attend", "attend_all", "on", "check"):
        assert f"`{method}`" in GUIDE
        assert hasattr(Backend, method)


def test_what_the_guide_says_works(followed):
    alone = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(followed)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *alone, TEST],
        cwd=followed,
        env={**os.environ, "PYTHONPATH": str(followed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    names = re.findall(r"^def (test_\w+)", FILES[TEST], re.MULTILINE)
    assert len(names) == 3
    for name in names:
        assert f"PASSED {TEST}::{name}" in result.stdout


def test_the_guides_code_is_formatted(followed):
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml")]
    files = [str(followed / name) for name in FILES]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [*ruff, *command, *config, *files], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_backend_in_a_package_of_its_own(tmp_path, monkeypatch):
    (toml,) = [code for language, code in BLOCKS if language == "toml"]
    project = tomllib.loads(toml)["project"]
    (entry,) = project["entry-points"][GROUP].items()
    module, _, attribute = entry[1].partition(":")
    (tmp_path / f"{module}.py").write_text(FILES["lvsa/backends/products.py"])
    # What an installer leaves behind.
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry[0]} = {entry[1]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert entry[0] not in BACKENDS
    assert entry[0] in known_backends()
    backend = get_backend(entry[0])
    assert type(backend).__name__ == attribute and backend.name == entry[0]
    sys.modules.pop(module)
