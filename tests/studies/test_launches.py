"""Launches, bytes and memory of a layer, counted on a GPU that is not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.exchange import get_exchange
from lvsa.exchange.base import token_bytes
from lvsa.settings import LVSASettings
from lvsa.shards import Shards
from lvsa.studies.bench.counter import Counter
from lvsa.studies.bench.fake_gpu import fake_gpu, triton_launches
from lvsa.studies.bench.launches import HEADER, LaunchesConfig, count_layer, launches
from lvsa.studies.bench.models import MODELS
from tests.support.errors import refuses

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
MB = 1 << 20


def counted(work: Any) -> Counter:
    """What ``work`` does on a fake GPU; the argument is a mebibyte of bfloat16."""
    counter = Counter()
    with fake_gpu(), counter:
        work(torch.empty(MB // 2, device="cuda", dtype=torch.bfloat16))
    return counter


@pytest.mark.parametrize(
    ("work", "kind", "launches", "moved"),
    [
        (lambda x: x + x, "model", 1, 3),
        (lambda x: x.mul_(2), "model", 1, 2),
        (lambda x: x.zero_(), "model", 1, 1),
        (lambda x: torch.empty_like(x).copy_(x), "model", 1, 2),
        (lambda x: torch.cat([x, x]), "model", 1, 4),
        (lambda x: x + x[:1].expand_as(x), "model", 1, 2),
        (lambda x: x.view(2, -1)[1].view(4, -1).transpose(0, 1), "model", 0, 0),
        (lambda x: x.view(512, -1) @ x.view(512, -1).t(), "GEMM", 1, 2.5),
    ],
)
def test_operators_launch_and_move(work: Any, kind: str, launches: int, moved: float) -> None:
    counts = counted(work).counts
    assert {*counts} == ({kind} if launches else set())
    if launches:
        assert counts[kind].launches == launches
        assert counts[kind].bytes == pytest.approx(moved * MB, abs=100)


def test_memory_is_counted_while_it_stands() -> None:
    def work(x: torch.Tensor) -> None:
        y = x + 1
        del y
        z = x.view(2, -1)[0] + 1
        z += 1

    assert counted(work).peak == 2 * MB


@pytest.fixture(scope="module")
def wan_14b() -> Any:
    return count_layer(LaunchesConfig(), "wan-14b", 8, "needed", "triton")


def test_a_layer_of_wan_14b(wan_14b: Any) -> None:
    counts = wan_14b.counts
    # q, k, v and out of two attentions, and two of the feed-forward.
    assert counts["GEMM"].launches == 10
    # A block of keys that is here, one that arrives, and the text.
    assert counts["attention"].launches == 3
    assert counts["exchange"].launches == 1
    size = MODELS["wan-14b"]
    pattern = LVSASettings(rotate_keyframes=True).pattern(81, 4, size.horizon)
    received = get_exchange("needed").received_tokens(Shards(size.grid(81), 8), pattern.attended[0])
    one = token_bytes(1, 40, 128, torch.bfloat16)
    assert counts["exchange"].bytes == received[3] * one
    assert 0 < wan_14b.own_bytes < 10e9
    assert 2e9 < wan_14b.peak < 8e9


def test_ranks_are_told_apart(wan_14b: Any) -> None:
    first = count_layer(LaunchesConfig(rank=0), "wan-14b", 8, "needed", "triton")
    assert first.counts["exchange"].bytes != wan_14b.counts["exchange"].bytes


def test_the_command_writes_a_table(tmp_path: Path) -> None:
    config = LaunchesConfig(
        models=("wan-1.3b",), ranks=(1, 2), backends=("sdpa:flash",), output_dir=tmp_path
    )
    rows = launches(config)
    assert [row.ranks for row in rows] == [1, 2]
    assert "exchange" not in rows[0].counts
    lines = (tmp_path / "launches.md").read_text().splitlines()
    assert lines[0] == HEADER and len(lines) == 2 + len(rows)
    record = json.loads((tmp_path / "launches.json").read_text())
    assert [row["launches"] for row in record["rows"]] == [row.launches for row in rows]
    assert record["rows"][1]["counts"]["attention"]["launches"] > 3


def test_dense_attention_is_one_launch_a_block() -> None:
    row = count_layer(LaunchesConfig(dense=True), "wan-1.3b", 1, "needed", "triton")
    assert row.counts["attention"].launches == 2


@pytest.mark.parametrize(
    ("rank", "model", "named"),
    [(8, "wan-14b", (8, "0 … 7")), (None, "wan", ("wan", *MODELS))],
)
def test_what_there_is_not(rank: int | None, model: str, named: tuple[Any, ...]) -> None:
    with refuses(LVSAError, *named):
        count_layer(LaunchesConfig(rank=rank), model, 8, "needed", "triton")


def test_triton_launches_nothing_on_a_fake_gpu() -> None:
    from lvsa.backends import get_backend

    seen = []
    with fake_gpu(), triton_launches(lambda kernel, tensors: seen.append((kernel, tensors))):
        q, k, v = (torch.empty(1, 200, 2, 64, device="cuda") for _ in range(3))
        get_backend("triton", "cuda").attend_all(q, k, v)
    [(kernel, tensors)] = seen
    assert kernel == "attend_strips"
    assert all(x.is_cuda for x in tensors) and len(tensors) == 10


def test_the_table_in_the_docs_is_of_this_command() -> None:
    assert HEADER in (ROOT / "docs/kernels.md").read_text().splitlines()
