"""Rotation and merging as GPUs would run them: compiled without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lvsa.errors import LVSAError
from lvsa.studies.bench.chips import CHIPS, Resources
from lvsa.studies.bench.memory_kernels import (
    HEADER,
    KERNELS,
    WARPS,
    MemoryKernelsConfig,
    Row,
    as_markdown,
    resources,
)
from tests.support.errors import refuses

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of the command, which runs by itself: where kernels are interpreted none compiles."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable, "studies/bench/memory_kernels.py", "--targets", *TARGETS,
        "--head-dims", "128", "--dtypes", "bfloat16", "--output-dir", str(folder),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    rows: list[dict[str, Any]] = json.loads((folder / "memory_kernels.json").read_text())["rows"]
    assert (folder / "memory_kernels.md").read_text().splitlines()[0] == HEADER
    return rows


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("target", TARGETS)
def test_reads_and_writes_wide_words_without_spills(
    target: str, kernel: str, compiled: list[dict[str, Any]]
) -> None:
    [row] = [row for row in compiled if (row["target"], row["kernel"]) == (target, kernel)]
    found, chip = row["resources"], CHIPS[target]
    assert found["spills"] == 0
    assert found["registers"] * WARPS * chip.lanes <= chip.registers
    assert found["shared"] <= chip.shared_of_program
    # A pair that stands half a head apart is two loads.
    assert found["access"] >= (64 if kernel == "rotate halves" else 128)
    # Enough loads on their way that the memory never waits for a processor.
    assert row["occupancy"] >= 0.5


def test_the_table_shows_the_worst_of_all_sizes() -> None:
    rows = [
        Row("sm_80", "merge", "float32", 64, Resources({}, 0, 40, 1024, access=128)),
        Row("sm_80", "merge", "float32", 128, Resources({}, 3, 128, 2048, access=64)),
    ]
    [line] = as_markdown(rows)[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == ["3", "128", "2", "64", "25%"]


@pytest.mark.parametrize(
    "config", [MemoryKernelsConfig(targets=("sm_70",)), MemoryKernelsConfig(kernels=("x",))]
)
def test_unknown_names(config: MemoryKernelsConfig) -> None:
    with refuses(LVSAError, *CHIPS if config.targets == ("sm_70",) else KERNELS):
        resources(config)


def test_what_is_interpreted_cannot_be_compiled(tmp_path: Path) -> None:
    with refuses(LVSAError, "TRITON_INTERPRET"):
        resources(MemoryKernelsConfig(targets=("sm_80",), output_dir=tmp_path))
