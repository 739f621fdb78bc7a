"""What is built of the project, and that its files agree with one another."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import lvsa

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "dist", "*.egg-info")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel that is built of a copy of the checkout, and its metadata."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=IGNORED)
    subprocess.run([sys.executable, "-c", BUILD, ".."], cwd=source, check=True, capture_output=True)
    (built,) = source.parent.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return names, archive.read(metadata).decode()


def files_of(folder):
    """Files as the package holds them, links followed; none of caches and outputs."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            yield from files_of(path)
        elif path.is_file():
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_every_file_of_the_package_once(wheel):
    names, _ = wheel
    built = [name for name in names if ".dist-info/" not in name]
    assert sorted(built) == sorted(files_of(ROOT / "lvsa"))
    assert len(set(built)) == len(built)
    assert {"lvsa/py.typed", "lvsa/assets/tiny-wan/model_index.json"} <= set(built)
    assert {"lvsa/launch/generate.py", "lvsa/launch/slurm/generate.sbatch"} <= set(built)


def test_every_folder_of_modules_is_a_package():
    """A folder without __init__.py would be missing in the wheel."""
    modules = [ROOT / name for name in files_of(ROOT / "lvsa") if name.endswith(".py")]
    assert not {path.parent for path in modules if not (path.parent / "__init__.py").exists()}


def test_the_wheel_says_what_the_project_says(wheel):
    _, metadata = wheel
    assert f"\nVersion: {PROJECT['version']}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert re.findall(r"\nLicense-File: (\S+)", metadata) == ["LICENSE", "NOTICE"]


def test_files_name_one_version_and_one_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == lvsa.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_notice_and_citation_name_the_published_method():
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    for fact in (paper["title"], paper["url"], paper["repository-code"]):
        assert fact in notice
    assert {paper["url"], paper["repository-code"]} <= set(PROJECT["urls"].values())


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_what_is_installed_is_in_the_stated_range(requirement):
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(version(wanted.name), prereleases=True)


def test_readme_names_the_range_of_pytorch_that_was_run():
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    first, last = re.findall(r"PyTorch (\d+\.\d+) to (\d+\.\d+)", (ROOT / "README.md").read_text())[
        0
    ]
    major, minor = last.split(".")
    assert torch.specifier == SpecifierSet(f">={first},<{major}.{int(minor) + 1}")


def test_the_workflow_runs_what_a_developer_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert "make check" in (ROOT / ".ci" / "run").read_text()


def test_hooks_are_the_linters_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    programs = {hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]}
    installed = {Requirement(requirement).name for requirement in dev()}
    assert programs <= installed


def dev():
    return PROJECT["optional-dependencies"]["dev"]
