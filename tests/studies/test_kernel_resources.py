"""The Triton kernel as GPUs would run it: compiled without one, and held to what a chip has."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.backends.triton_shapes import GENERATIONS, SHAPES, shape_for
from lvsa.errors import LVSAError
from lvsa.studies.bench.chips import CHIPS, Resources, programs_on
from lvsa.studies.bench.compiling import read_amdgcn
from lvsa.studies.bench.kernel_resources import (
    HEADER,
    LAUNCHES,
    ResourcesConfig,
    Row,
    as_markdown,
    resources,
)
from tests.support.errors import refuses

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
GPUS = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of the command, which runs by itself: where kernels are interpreted none compiles."""
    folder = tmp_path_factory.mktemp("kernels")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable, "studies/bench/kernel_resources.py", "--targets", *GPUS,
        "--head-dims", "128", "--dtypes", "bfloat16", "--launches", "block between",
        "--output-dir", str(folder),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    rows: list[dict[str, Any]] = json.loads((folder / "kernel_resources.json").read_text())["rows"]
    table = (folder / "kernel_resources.md").read_text().splitlines()
    assert table[0] == HEADER and len(table) == 2 + len(rows)
    return rows


@pytest.mark.parametrize(("target", "instruction"), GPUS.items())
def test_compiles_into_tensor_core_instructions_within_the_chip(
    target: str, instruction: str, compiled: list[dict[str, Any]]
) -> None:
    [row] = [row for row in compiled if row["target"] == target]
    found, chip = row["resources"], CHIPS[target]
    assert tuple(row["shape"]) == SHAPES[target][128, 2]
    assert all(name.startswith(instruction) for name in found["tensor_core"])
    # Two loops of two products each, in several instructions.
    assert sum(found["tensor_core"].values()) >= 8
    assert found["spills"] == 0
    assert found["registers"] * row["shape"][2] * chip.lanes <= chip.registers
    assert 0 < found["shared"] <= chip.shared_of_program
    assert row["programs"] >= 1


def test_every_generation_has_all_head_dimensions_and_a_chip() -> None:
    assert {*GENERATIONS.values()} == {*SHAPES}
    for shapes in SHAPES.values():
        assert {*shapes} == {(most, size) for most in (64, 127, 128, 256) for size in (2, 4)}
    assert {*CHIPS} <= {*GENERATIONS}
    assert {GENERATIONS[target] for target in CHIPS} == {*SHAPES} - {"interpreter"}


@pytest.mark.parametrize(
    ("target", "found", "warps", "programs"),
    [
        # 255 registers count as 256: 65,536 / (256 × 32) = 8 warps.
        ("sm_80", Resources({}, 0, 255, 1024), 4, 2),
        ("sm_80", Resources({}, 0, 255, 1024), 8, 1),
        ("sm_80", Resources({}, 0, 32, 1024), 4, 16),  # 64 warps
        ("sm_80", Resources({}, 0, 32, 1024), 1, 32),  # programs
        ("sm_90", Resources({}, 0, 32, 75 * 1024), 4, 3),  # shared memory, with 1 KiB each
        ("sm_90", Resources({}, 0, 32, 76 * 1024), 4, 2),
        ("sm_90", Resources({}, 0, 32, 228 * 1024), 4, 0),
        ("sm_100", Resources({}, 0, 32, 1024, tensor_memory=256), 4, 2),
        ("gfx942", Resources({}, 0, 323, 1024), 4, 1),  # one wave of 512 registers on a SIMD
        ("gfx942", Resources({}, 0, 256, 1024), 4, 2),
        ("gfx942", Resources({}, 0, 32, 0), 4, 8),  # no shared memory at all
    ],
)
def test_programs_that_fit_on_a_processor(
    target: str, found: Resources, warps: int, programs: int
) -> None:
    assert programs_on(CHIPS[target], found, warps) == programs


def test_amd_lists_its_resources() -> None:
    code = """
        v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
        v_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
        .group_segment_fixed_size: 16
        .sgpr_spill_count: 1
        global_load_dwordx2 v[0:1], v[2:3], off
        global_store_dwordx4 v[2:3], v[4:7], off
        .vgpr_count:     236
        .vgpr_spill_count: 3
    """
    found = read_amdgcn(code, 1000)
    assert found == Resources({"v_mfma_f32": 2}, 4, 236, 1016, access=128)


def test_the_table_shows_the_most_that_a_launch_takes() -> None:
    shape = SHAPES["sm_80"][128, 2]
    few, many = Resources({"HMMA": 4}, 0, 100, 1024), Resources({"HMMA": 8}, 2, 200, 2048)
    rows = [
        Row("sm_80", "bfloat16", 128, launch, shape, found)
        for launch, found in zip(LAUNCHES, (few, many), strict=False)
    ]
    [line] = as_markdown(rows)[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[6:] == ["8 HMMA", "2", "200", "2", "1", "12%"]


@pytest.mark.parametrize(
    "config", [ResourcesConfig(targets=("sm_70",)), ResourcesConfig(launches=("x",))]
)
def test_unknown_names(config: ResourcesConfig) -> None:
    with refuses(LVSAError, *CHIPS if config.targets == ("sm_70",) else LAUNCHES):
        resources(config)


def test_what_is_interpreted_cannot_be_compiled(tmp_path: Path) -> None:
    with refuses(LVSAError, "TRITON_INTERPRET"):
        resources(ResourcesConfig(targets=("sm_80",), output_dir=tmp_path))


def test_the_table_in_the_docs_is_of_these_shapes() -> None:
    lines = (ROOT / "docs/kernels.md").read_text().splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[lines.index(HEADER) + 2 :])
    shown = set()
    for row in rows:
        gpu, dtype, head_dim, block, warps, stages, _, spills, *_ = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        target = gpu.split()[0]
        shape = shape_for(target, getattr(torch, dtype), int(head_dim))
        held = (f"{shape.rows} × {shape.keys}", str(shape.warps), str(shape.stages))
        assert (block, warps, stages, spills) == (*held, "0")
        shown.add((target, dtype, int(head_dim)))
    config = ResourcesConfig()
    assert shown == {*itertools.product(CHIPS, config.dtypes, config.head_dims)}
