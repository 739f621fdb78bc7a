"""The attention benchmark measures what it says, on one rank and on two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.studies.bench.attention import BenchConfig, Case, bench, cases, measure, summary
from tests.support.errors import refuses
from tests.support.ranks import run_ranks

TINY = BenchConfig(
    latent_frames=(24,),
    tokens_per_frame=(8,),
    heads=(2,),
    head_dims=(8,),
    ranks=(1,),
    horizon=8,
    repeats=2,
    device="cpu",
)


def test_combinations_are_all_there_and_one_process_exchanges_nothing() -> None:
    config = BenchConfig(latent_frames=(8, 16), ranks=(1, 2), exchanges=("needed", "ring"))
    found = [(c.latent_frames, c.ranks, c.ulysses, c.exchange) for c in cases(config)]
    each = [(1, 1, "none"), (2, 1, "needed"), (2, 1, "ring"), (2, 2, "none")]
    assert found == [(frames, *rest) for frames in (8, 16) for rest in each]
    odd = BenchConfig(latent_frames=(8,), ranks=(4,), heads=(3,), exchanges=("ring",))
    assert [case.ulysses for case in cases(odd)] == [1], "three heads do not divide by two"


def test_one_process_writes_results_and_chart(tmp_path: Path) -> None:
    [row] = bench(BenchConfig(**{**vars(TINY), "output_dir": tmp_path}))
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["cases"] == [row] and record["device"] == "cpu"
    assert record["config"]["latent_frames"] == [24]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert len(row["dense_seconds"]) == len(row["sparse_seconds"]) == 2
    assert 0 < row["density"] < 1 and row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"]
    assert row["dense_received_bytes_max"] == row["sparse_received_bytes_max"] == 0


def measured(rank: int, world: int, cases: list[Case]) -> list[dict[str, Any]]:
    return [measure(case, TINY, torch.device("cpu")) for case in cases]


def test_two_ranks_count_what_they_receive_and_the_slowest_counts() -> None:
    # A shard of 12 frames × 8 tokens, keys and values of 2 × 8 channels in float32.
    shard = 12 * 8 * 2 * 2 * 8 * 4
    exchanges = [Case(24, 8, 2, 8, 2, 1, exchange) for exchange in ("needed", "all_gather")]
    exchanges.append(Case(24, 8, 2, 8, 2, 2, "none"))
    results = zip(*run_ranks(2, measured, exchanges), strict=True)
    for case, ranks in zip(exchanges, results, strict=True):
        row = summary(case, list(ranks))
        # Heads: queries, keys, values and outputs, half of each, whatever is attended.
        assert row["dense_received_bytes_max"] == shard
        sparse = row["sparse_received_bytes_max"]
        assert 0 < sparse < shard if case.exchange == "needed" else sparse == shard
        slower = [max(pair) for pair in zip(*(r["seconds"]["dense"] for r in ranks), strict=True)]
        assert row["dense_seconds"] == pytest.approx(slower, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"repeats": 0}, ("--repeats", 0, 1)),
        ({"latent_frames": (3,), "tokens_per_frame": (1,), "ranks": (2,)}, ("--ranks", 3, 2)),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(LVSAError, *named):
        bench(BenchConfig(**{**vars(TINY), **change}))
