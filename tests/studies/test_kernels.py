"""The benchmark of kernels measures what it says; driven on the CPU at tiny sizes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.errors import BackendUnavailable, DivisibilityError, LVSAError
from lvsa.studies.bench.dense_kernels import dense_kernel
from lvsa.studies.bench.kernels import (
    HEADER,
    KernelsConfig,
    dense_call,
    kernels,
    sparse_call,
    work_of,
)
from lvsa.studies.bench.timing import CACHE_BYTES, sets_past_the_cache, time_calls
from tests.support.errors import refuses

CPU = torch.device("cpu")
TINY = KernelsConfig(
    models=("wan-1.3b",),
    latent_frames=40,
    ranks=(1, 2),
    backends=("sdpa", "math", "npu"),
    dense=("sdpa", "flash-attn-3", "xfuser:CUDNN"),
    rows_and_columns=(2, 2),
    heads=1,
    repeats=2,
    device="cpu",
    dtype="float32",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("kernels")
    return folder, kernels(replace(TINY, output_dir=folder))


def test_rows_of_all_kernels(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = written
    assert json.loads((folder / "kernels.json").read_text())["rows"] == rows
    assert (folder / "kernels.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "kernels.md").read_text().splitlines()
    assert lines[0] == HEADER and len(lines) == 2 + len(rows) == 2 + 2 * 6
    missing = {row["kernel"] for row in rows if "missing" in row}
    assert missing == {"npu", "flash-attn-3", "xfuser:CUDNN"}
    for row in rows:
        if row["kind"] == "sparse" and "missing" not in row:
            assert 0 < row["density"] < 1
            seconds = row["seconds"]
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
            [dense] = [
                r for r in rows if r["kernel"] == "sdpa" and r["kind"] == "dense"
                and r["ranks"] == row["ranks"]
            ]  # fmt: skip
            assert row["speedup"] == dense["seconds"]["median"] / seconds["median"]
            assert row["speedup_times_density"] == row["speedup"] * row["density"]


@pytest.mark.parametrize("world", [1, 2])
def test_a_sparse_call_attends_the_pattern(world: int) -> None:
    """Both backends get the same inputs, and a query's weights sum to 1 over what it attends."""
    work = work_of(TINY, "wan-1.3b", world, CPU)
    states = []
    for backend in ("sdpa", "math"):
        torch.manual_seed(0)
        call, n_sets = sparse_call(work, backend)
        assert n_sets == 1
        states.append(call(0))
    torch.testing.assert_close(*(state.out_BLHD for state in states), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(state.lse_BHL for state in states), rtol=1e-4, atol=1e-5)
    assert states[0].out_BLHD.shape == (1, 160 // world, 1, 128)
    assert work.tokens == 160 and work.queries == 160 // world
    dense, _ = dense_call(work, "sdpa")
    # Over more keys the log-sum-exp is larger.
    assert (dense(0).lse_BHL.mean() > states[0].lse_BHL.mean()).item()


def test_what_is_missing_names_the_wheel() -> None:
    for name, wheel in (("flash-attn-3", "flash_attn_3"), ("xfuser:FLASH_3", "xfuser")):
        with refuses(BackendUnavailable, name.partition(":")[0], wheel):
            dense_kernel(name, CPU, torch.float32, 64)


def test_inputs_rotate_past_the_cache() -> None:
    numbers: list[int] = []
    assert len(time_calls(numbers.append, 3, 4, CPU)) == 4
    assert numbers == [0, 1, 2, 0, 1]
    gpu = torch.device("cuda")
    assert sets_past_the_cache(CACHE_BYTES // 2, gpu) * (CACHE_BYTES // 2) > CACHE_BYTES
    assert sets_past_the_cache(10 * CACHE_BYTES, gpu) == 2
    assert sets_past_the_cache(1, CPU) == 1


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"repeats": 0}, LVSAError, ("--repeats", 0, 1)),
        ({"ranks": (3,)}, DivisibilityError, (160, 3)),
        ({"models": ("wan",)}, LVSAError, ("wan", "wan-14b")),
    ],
)
def test_impossible_settings_are_refused(
    change: dict[str, Any], error: type[Exception], named: tuple[Any, ...]
) -> None:
    with refuses(error, *named):
        kernels(replace(TINY, **change))
