"""studies → launch → adapters | cp_plans → engine, serving → adapters: layers import downwards."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("lvsa", "cp_plans", "adapters", "serving", "launch", "studies")
MODELS = ("diffusers", "transformers", "accelerate", "tokenizers", "sentencepiece")
# What a layer may not import, by prefix.
FORBIDDEN = {
    "lvsa": (
        "lvsa.cp_plans",
        "lvsa.adapters",
        "lvsa.serving",
        "lvsa.launch",
        "lvsa.studies",
        *MODELS,
    ),
    "cp_plans": ("lvsa.adapters", "lvsa.serving", "lvsa.launch", "lvsa.studies"),
    "adapters": ("lvsa.serving", "lvsa.launch", "lvsa.studies"),
    "serving": ("lvsa.launch", "lvsa.studies"),
    "launch": ("lvsa.serving", "lvsa.studies"),
    "studies": (),
}
# The one call that needs models is offered by the package, and loaded when it is asked for.
LAZY = {("lvsa/__init__.py", "lvsa.adapters.install.enable")}
MOST_LINES = 320
MOST_LINES_OF_A_TEST = 400
STANDARD = sys.stdlib_module_names
# Folders whose files are run as scripts: each is then first on the path of imports.
SCRIPTS = sorted(
    {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
     if "__main__" in path.read_text()}
)  # fmt: skip


def modules(layer):
    # The links to the other layers in lvsa/ are not followed.
    return sorted((ROOT / layer).rglob("*.py"))


def name_of(path):
    """`adapters/wan.py` is imported as `lvsa.adapters.wan`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "lvsa" else ("lvsa", *parts)
    return ".".join(parts).removesuffix(".__init__")


def statements(tree, deferred=True):
    """Import statements; without the deferred ones, those that run with the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if deferred or not (for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(node, deferred)


def imported(tree, module, is_package=False, deferred=True):
    """Full names of what a module imports, also where it spells them as strings to load later."""
    for node in statements(tree, deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            package = module.split(".")
            package = package[: len(package) - node.level + is_package]
            base = ".".join([*package, *([base] if base else [])])
        # `from lvsa import adapters` imports a module too.
        yield from (f"{base}.{alias.name}" for alias in node.names)
    if deferred:
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"(lvsa(\.\w+)+|diffusers\S*)(:\w+)?", text):
                yield text.split(":")[0]


def within(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def violations(path, source):
    """Imports of a file that its layer may not have."""
    relative = path.relative_to(ROOT)
    layer = relative.parts[0]
    allowed = {name for file, name in LAZY if file == relative.as_posix()}
    return [
        name
        for name in imported(ast.parse(source), name_of(path), path.name == "__init__.py")
        if any(within(name, prefix) for prefix in FORBIDDEN[layer])
        and not any(within(name, prefix) or within(prefix, name) for prefix in allowed)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards(layer):
    assert modules(layer)
    found = {
        path.relative_to(ROOT).as_posix(): violations(path, path.read_text())
        for path in modules(layer)
    }
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lvsa/new.py", "import diffusers"),
        ("lvsa/new.py", "def f():\n    from transformers import AutoModel"),
        ("lvsa/new.py", "from lvsa import adapters"),
        ("lvsa/exchange/new.py", "from ..adapters import get_adapter"),
        ("lvsa/__init__.py", "from .launch import config"),
        ("lvsa/new.py", "from lvsa.adapters.install.enable import enable"),
        ("lvsa/__init__.py", "from lvsa.adapters.base import ModelAdapter"),
        ("lvsa/new.py", "load('lvsa.adapters.wan:WanAdapter')"),
        ("cp_plans/new.py", "from lvsa.adapters.base import ModelAdapter"),
        ("cp_plans/new.py", "if TYPE_CHECKING:\n    import lvsa.launch.config"),
        ("adapters/new.py", "from lvsa.launch.config import GenerateConfig"),
        ("adapters/new.py", "from lvsa.serving.vllm_omni import backend"),
        ("serving/new.py", "from lvsa.launch.config import GenerateConfig"),
        ("serving/vllm_omni/new.py", "from ...launch import config"),
        ("launch/new.py", "from lvsa.studies.quality.measures import measure"),
    ],
)
def test_the_walk_sees_what_is_forbidden(file, source):
    assert violations(ROOT / file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "lvsa/new.py",
            "import torch\nfrom lvsa.pattern import Pattern\nfrom .shards import Shards",
        ),
        ("lvsa/__init__.py", "def f():\n    from lvsa.adapters.install import enable"),
        ("cp_plans/new.py", "from diffusers.hooks import apply_context_parallel"),
        ("adapters/new.py", "from lvsa.cp_plans import get_plan\nimport diffusers"),
        ("launch/new.py", "from lvsa.adapters import get_adapter"),
    ],
)
def test_the_walk_leaves_the_rest_alone(file, source):
    assert violations(ROOT / file, source) == []


def test_the_package_loads_torch_and_models_only_when_asked():
    """As a statement in the source, and as a fact of a fresh interpreter."""
    tree = ast.parse((ROOT / "lvsa/__init__.py").read_text())
    at_import = list(imported(tree, "lvsa", is_package=True, deferred=False))
    assert at_import
    assert not [name for name in at_import if within(name, "lvsa.adapters")]
    program = "import sys, lvsa; print([m for m in sys.modules if m.split('.')[0] in {}])"
    loaded = subprocess.run(
        [sys.executable, "-c", program.format({*MODELS, "torch"})],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_hides_a_standard_module(folder):
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.name for path in folder.iterdir() if path.is_dir()}
    assert "__init__" in names
    assert not names & STANDARD


def test_the_folders_of_scripts_are_found():
    assert {ROOT / "launch", *(ROOT / "studies").glob("[a-z]*/")} == set(SCRIPTS)
    assert {"queue", "types", "logging"} <= STANDARD


@pytest.mark.parametrize("layer", LAYERS)
def test_modules_are_short_and_say_what_they_are_for(layer):
    for path in modules(layer):
        source = path.read_text()
        relative = path.relative_to(ROOT).as_posix()
        assert len(source.splitlines()) <= MOST_LINES, relative
        assert not source.strip() or ast.get_docstring(ast.parse(source)), relative


def test_tests_lie_in_folders_of_the_codes_names():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    # The batch scripts' tests need a cluster of their own.
    assert folders == {*LAYERS, "slurm", "support"}
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(tests) > len(LAYERS)
    assert {path.parent.name for path in tests} == {*LAYERS, "slurm", "tests"}


def test_tests_are_short():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert {file: n for file, n in lines.items() if n > MOST_LINES_OF_A_TEST} == {}


def test_one_package_by_links():
    """Each folder beside lvsa/ is linked in it: no list of stubs or of packages beside that."""
    links = {path.name for path in (ROOT / "lvsa").iterdir() if path.is_symlink()}
    assert links == {*LAYERS, "assets"} - {"lvsa"}
    assert all((ROOT / "lvsa" / name).samefile(ROOT / name) for name in links)
    assert not (ROOT / "typings").exists()
