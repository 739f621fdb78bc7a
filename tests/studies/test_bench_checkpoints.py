"""The benchmark of checkpoints measures real ones."""

import pytest

from lvsa.launch.checkpoint.folder import INPUTS, STATE
from lvsa.studies.bench.checkpoints import CheckpointBench, bench, summary


def test_what_is_measured(tmp_path):
    config = CheckpointBench(
        shape=(1, 4, 5, 6, 8),
        embeddings=(2, 1, 8, 16),
        step_seconds=0.01,
        matrix=16,
        folder=tmp_path,
    )
    result = bench(config)
    # Of UniPC: the latents, two outputs before and the last sample, in float32, besides schedules.
    assert 4 * 960 * 4 < result["bytes"][STATE] < 4 * 960 * 4 + 100_000
    assert result["bytes"][INPUTS] > 2 * 8 * 16 * 4
    for name in ("seconds_per_step_with", "seconds_of_a_processor", "seconds_of_the_loop"):
        assert len(result[name]) == 4 and min(result[name]) > 0
    for limit, name in (
        ("shortest_step_for_1_percent", "seconds_of_the_loop"),
        ("shortest_step_on_the_same_processors", "seconds_of_a_processor"),
    ):
        cost = sorted(result[name])
        assert result[limit] == pytest.approx(50 * (cost[1] + cost[2]))
    assert f"{result['bytes'][STATE] / 1e6:.0f} MB" in summary(result)
    assert not list(tmp_path.iterdir())
