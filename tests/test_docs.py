"""Every command of the documents: run as it is written, or held against what it names.

A command is run in a fresh copy of the checkout unless `NEEDS` says what it needs that a test has
not. Those, and commands inside the text, are checked: scripts and targets exist, and flags are
known to the program that they are given to.
"""

import ast
import functools
import inspect
import json
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch.distributed.run import get_args_parser as torchrun

import lvsa
from lvsa.launch.arguments import parse
from tests.serving.support.stand_in import FOLDER
from tests.support.launched import python
from tests.support.missing import missing

ROOT = Path(__file__).resolve().parents[1]
# The commands of clusters.md need a cluster: tests/slurm runs its scripts on one.
CLUSTERS = ROOT / "docs" / "clusters.md"
PAGES = sorted(set((ROOT / "docs").glob("*.md")) - {CLUSTERS})
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CARD = ROOT / "assets" / "tiny-wan" / "README.md"
# How commands begin that cannot run here as they are written, and what they need.
NEEDS = {
    "make test": "minutes: these tests",
    "make check": "minutes: these tests",
    "torchrun --nproc_per_node=8": "GPUs and weights",
    "sbatch": "Slurm",
    "pip install": "the network",
    "pre-commit": "the network",
    "uv": "the network",
    "UV_TORCH_BACKEND=cpu uv": "the network",
    "python -m venv": "an environment of its own",
    "source": "an environment of its own",
    "vllm-omni serve": "vLLM-Omni, and weights",
    "curl": "a server",
    "python studies/tiny_wan/train.py": "80 minutes",
    "python studies/quality/study.py": "minutes",
    "python studies/bench/forward.py": "minutes",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = (
    "python", "make", "torchrun", "sbatch", "pip", "uv", "pre-commit", "lvsa-generate",
    "vllm-omni", "curl",
)  # fmt: skip
WAN_1_3B = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def prose(text):
    """A document without its fenced blocks."""
    return FENCE.sub("", text)


def blocks(text):
    """Shell code of a document: fenced blocks, and indented ones that begin with a program."""
    yield from (code for language, code in FENCE.findall(text) if language in ("bash", "sh"))
    for match in INDENTED.finditer(prose(text)):
        if match[0].split()[0] in PROGRAMS:
            yield re.sub(r"^ {4}", "", match[0], flags=re.MULTILINE)


def commands(text):
    """Commands of a document's shell code as they are written, without comments."""
    for code in blocks(text):
        for line in code.replace("\\\n", " ").splitlines():
            yield from filter(None, re.split(r"\s+&&\s+", re.sub(r"(^|\s+)#.*", "", line)))


def mentioned(text):
    """Commands inside the text, as far as a program is called by its name."""
    for span in INLINE.findall(prose(text)):
        words = span.split()
        if words[0] in PROGRAMS and len(words) > 1:
            yield " ".join(words)


def need(command):
    return next((why for start, why in NEEDS.items() if command.startswith(start)), None)


ALL = {path: list(commands(path.read_text())) for path in DOCUMENTS}
RUN = sorted({command for found in ALL.values() for command in found if not need(command)})
CHECKED = sorted(
    {command for found in ALL.values() for command in found if need(command)}
    | {command for path in DOCUMENTS for command in mentioned(path.read_text())}
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh copy of the checkout, beside it the configs of the checkpoint that README plans."""
    root = tmp_path_factory.mktemp("clone") / "lvsa"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, root, symlinks=True, ignore=ignore)
    model = root / WAN_1_3B
    with torch.device("meta"):
        transformer = WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
        parts = {"transformer": transformer, "vae": AutoencoderKLWan()}
    parts["scheduler"] = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    for name, part in parts.items():
        part.save_config(model / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "_class_name": "WanPipeline"}
    index |= {"tokenizer": ["transformers", "T5TokenizerFast"]}
    (model / "model_index.json").write_text(json.dumps(index))
    # What `make install` would make.
    environment = root / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / ".installed").touch()
    return root


@functools.cache
def run(command, cwd=ROOT):
    """A command as a shell runs it in an activated environment; each once."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(cwd),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, cwd=cwd,
        env=environment, timeout=120,
    )  # fmt: skip


@functools.cache
def flags_of(script):
    """Flags that a script's --help shows."""
    shown = python(["--help"], script, COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"--[\w.-]*\w", shown.stdout))


def flags(words):
    return [word.split("=")[0] for word in words if re.match(r"--\w", word)]


def check_script(script, arguments):
    """A script is there and knows the flags that it is given."""
    assert (ROOT / script).is_file(), f"no such script: {script}"
    assert set(flags(arguments)) <= flags_of(script)
    if script == "launch/generate.py":
        parse(arguments, quiet=True)


def check_make(arguments):
    """Targets exist, and so does what their recipes call."""
    shown = run(f"make --dry-run VENV={sys.prefix} {' '.join(arguments)}")
    assert shown.returncode == 0, shown.stderr
    for line in shown.stdout.replace("\\\n", " ").splitlines():
        for call in re.findall(r"(?:launch|studies)/\S+\.py[^;]*", line):
            script, *given = shlex.split(call)
            check_script(script, given)


def check_install(words):
    """The extras that are asked for exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        if match := re.search(r"\[(.+)\]$", word):
            assert set(match[1].split(",")) <= set(extras["optional-dependencies"])


@functools.cache
def flags_of_the_server():
    """Flags that vLLM-Omni's files name, and those that it inherits."""
    if not FOLDER.is_dir():
        missing(f"no vLLM-Omni in {FOLDER}; make install puts it there")
    source = (FOLDER / "vllm_omni" / "entrypoints" / "cli" / "serve.py").read_text()
    inherited = {"--port", "--additional-config", "--tensor-parallel-size"}
    return inherited | set(re.findall(r"--[a-z][\w-]*\w", source))


def check(command):
    """A command against the files, targets, extras and flags that it names."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=|…$", word)]
    program, *words = words
    scripts = [i for i, word in enumerate(words) if word.endswith((".py", ".sbatch"))]
    if program == "make":
        check_make(words)
    elif program in ("pip", "uv"):
        check_install(words)
    elif program == "vllm-omni":
        assert words[0] == "serve"
        assert set(flags(words)) <= flags_of_the_server()
    elif program == "sbatch":
        assert (ROOT / words[scripts[0]]).is_file()
        check_script("launch/generate.py", words[scripts[0] + 1 :])
    elif program in ("python", "torchrun") and scripts:
        check_script(words[scripts[0]], words[scripts[0] + 1 :])
    else:
        assert re.match(r"python -m (venv|pytest)|source|pre-commit|curl", command), command


@pytest.mark.parametrize("command", RUN)
def test_runs_as_written(command, clone):
    done = run(command, clone)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("command", CHECKED)
def test_names_what_there_is(command):
    check(command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_in_the_text_exist(document):
    """Those of the launcher, of torchrun, and of the scripts that the same document names."""
    text = prose(document.read_text())
    scripts = {"launch/generate.py", *re.findall(r"studies/\w+/\w+\.py", text)}
    known = {flag for script in scripts for flag in flags_of(script)}
    known |= {flag for action in torchrun()._actions for flag in action.option_strings}
    spans = [span.split() for span in INLINE.findall(text)]
    if document.name == "serving.md":
        known |= flags_of_the_server()
    named = [word for words in spans if words[0] not in PROGRAMS for word in flags(words)]
    assert set(named) <= known


def test_every_flag_is_in_a_document():
    """All but second names, which the config's fields have beside their first."""
    text = "".join(path.read_text() for path in [ROOT / "README.md", *PAGES])
    known = {flag for flag in flags_of("launch/generate.py") if not flag.startswith("--no-")}
    second = {"--guidance-scale", "--num-inference-steps", "--nproc"}
    missing = {flag for flag in known if not re.search(rf"{flag}(?![\w-])", text)}
    assert missing <= second


def test_the_plan_that_readme_shows_is_the_one_that_is_printed(clone):
    text = (ROOT / "README.md").read_text()
    command = next(c for c in commands(text) if "--dry-run" in c and WAN_1_3B in c)
    shown = next(code for language, code in FENCE.findall(text) if code.startswith("sequence "))
    done = run(command, clone)
    assert shown in done.stdout + done.stderr


def test_the_first_command_makes_a_video_and_its_record(clone):
    done = run("make generate", clone)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (ROOT / "README.md").read_text()
    (video,) = re.findall(r"`(outputs/[\w-]+\.mp4)`", text)
    assert (clone / video).stat().st_size > 1000
    record = (clone / video).with_suffix(".json").read_text()
    assert json.loads(record)["versions"]["torch"] == torch.__version__
    assert '"a red circle bounces"' in record


def test_the_code_of_the_model_card_runs_as_written(clone):
    (code,) = (code for language, code in FENCE.findall(CARD.read_text()) if language == "python")
    (clone / "card.py").write_text(code + "\nassert len(video) == 81\n")
    done = run("python card.py", clone)
    assert done.returncode == 0, done.stderr[-3000:]


def python_of_readme(needs_gpu):
    """README's Python code, with or without what needs a GPU and weights."""
    text = (ROOT / "README.md").read_text()
    codes = [code for language, code in FENCE.findall(text) if language == "python"]
    return [code for code in codes if ('"cuda"' in code) == needs_gpu]


@pytest.mark.parametrize("code", python_of_readme(needs_gpu=False))
def test_code_of_readme_runs_as_written(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("code", python_of_readme(needs_gpu=True))
def test_other_code_of_readme_calls_the_library_as_it_is(code):
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    calls = {ast.unparse(call.func): call for call in calls}
    assert "lvsa.enable" in calls
    for name, call in calls.items():
        if name.startswith("lvsa."):
            known = inspect.signature(operator.attrgetter(name[5:])(lvsa)).parameters
            assert {keyword.arg for keyword in call.keywords} - {None} <= set(known)


@pytest.mark.parametrize("document", [*DOCUMENTS, CLUSTERS], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", prose(document.read_text()))
    assert not [target for target in targets if not (document.parent / target).exists()]


def test_nothing_is_forgotten():
    assert len(RUN) >= 1
    assert len(CHECKED) >= 8
    everything = [command for found in ALL.values() for command in found]
    assert not [start for start in NEEDS if not any(c.startswith(start) for c in everything)]


@pytest.mark.parametrize(
    "command",
    [
        "make chekc",
        "python launch/generat.py --lvsa",
        "python launch/generate.py --lsva",
        "torchrun --nproc_per_node=2 launch/generate.py --exchange some",
        "sbatch --nodes=2 launch/slurm/generate.sbatch --no-such-flag",
        "vllm-omni serve MODEL --omni --no-such-flag",
        "python studies/bench/attention.py --no-such-flag 1",
        "pip install -e .[docs]",
        "cargo build",
    ],
)
def test_the_check_can_fail(command):
    with pytest.raises((AssertionError, SystemExit, lvsa.errors.LVSAError)):
        check(command)
