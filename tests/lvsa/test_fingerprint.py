"""Fingerprints change with the bits of a tensor and their order, and with nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from lvsa import fingerprint as module
from lvsa.comm import check_weights
from lvsa.errors import RankMismatch
from lvsa.fingerprint import fingerprint, fingerprint_of_weights
from tests.support.errors import refuses
from tests.support.ranks import run_ranks

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool]


def numbers(tensor):
    return fingerprint(tensor).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 4096, 3 * 4096 + 5])
def test_one_changed_value_changes_it(dtype, size):
    x = (torch.randn(size, generator=torch.Generator().manual_seed(size)) > 0).to(dtype)
    for i in {0, size // 2, size - 1}:
        y = x.clone()
        y[i] = not bool(x[i])
        assert numbers(x) != numbers(y)
    assert numbers(x) == numbers(x.clone())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 30_000), st.data())
def test_two_swapped_values_change_it(size, data):
    x = torch.arange(size, dtype=torch.int64) * 7919 + 1
    i, j = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    y = x.clone()
    y[i], y[j] = x[j], x[i]
    assert (numbers(x) == numbers(y)) == (i == j)


def test_chunks_change_nothing(monkeypatch):
    x = torch.randn(200_000)
    whole = numbers(x)
    monkeypatch.setattr(module, "CHUNK_ROWS", 3)
    assert numbers(x) == whole


def test_strides_change_nothing_and_bits_count():
    x = torch.randn(6, 8)
    assert numbers(x.t().contiguous().t()) == numbers(x)
    assert numbers(torch.tensor([0.0])) != numbers(torch.tensor([-0.0]))
    assert numbers(torch.full((3,), torch.nan)) == numbers(torch.full((3,), torch.nan))
    # A view that begins off an eight-byte border.
    odd = torch.randn(9, dtype=torch.float32)
    assert numbers(odd[1:]) == numbers(odd[1:].clone())


def test_of_weights_counts_parameters_and_buffers():
    norm = nn.BatchNorm1d(3)
    before = fingerprint_of_weights(norm)
    norm.running_mean[1] = 1
    assert (fingerprint_of_weights(norm) != before).any()
    assert fingerprint_of_weights(nn.ReLU()).numel() == 0


def in_parts(rank, world):
    torch.manual_seed(0)
    layer = nn.Linear(4, 5)
    whole = fingerprint_of_weights(layer)
    return torch.equal(fingerprint_of_weights(fully_shard(layer)), whole)


def test_weights_in_parts_have_the_fingerprint_of_the_whole():
    assert run_ranks(3, in_parts) == [True] * 3


def other_weights(rank, world, differs):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    if rank == differs:
        with torch.no_grad():
            layer.bias[2] += 1e-6
    check_weights({"transformer": layer}, dist.group.WORLD)


def expect_refusal(rank, world):
    with refuses(RankMismatch, "rank 1", "transformer.bias"):
        other_weights(rank, world, 1)


def test_ranks_with_other_weights_are_refused_on_all_of_them():
    run_ranks(2, other_weights, None)
    run_ranks(3, expect_refusal)
