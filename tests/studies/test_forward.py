"""The benchmark of whole forwards measures what it says; driven on the CPU at tiny sizes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.studies.bench.forward import KINDS, ForwardConfig, forward, summary
from tests.support.errors import refuses

TINY = ForwardConfig(
    layers=2, heads=1, head_dim=12, ffn_dim=16, latent_frames=40, rows_and_columns=(2, 2),
    steps=2, backend="math", device="cpu",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_three_kinds_of_forward_in_turn(tmp_path: Path, dtype: Any) -> None:
    found = forward(replace(TINY, dtype=dtype, output_dir=tmp_path))
    record = json.loads((tmp_path / "forward.json").read_text())
    assert {key: record[key] for key in found} == found
    assert record["config"]["dtype"] == dtype and record["threads"] == torch.get_num_threads()
    assert {*found["seconds"]} == {*KINDS}
    assert all(len(seconds) == 2 for seconds in found["seconds"].values())
    assert 0 < found["density"] < 1 and found["ratio"] > 0


def test_ratios() -> None:
    seconds = {"dense": [10.0, 10.0], "sparse": [4.0, 4.0], "without attention": [2.0, 2.0]}
    assert summary(seconds) == {
        "ratio": 0.4,
        "speedup": 2.5,
        "attention_ratio": 0.25,
        "share_without_attention": 0.2,
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [({"steps": 0}, ("--steps", 0, 1)), ({"model": "hunyuan15"}, ("hunyuan15", "wan-1.3b"))],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(LVSAError, *named):
        forward(replace(TINY, **change))
