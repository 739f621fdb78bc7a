"""Ranks that disagree, and collectives that fail, say who and what."""

from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from lvsa.comm import (
    all_gather,
    check_agreement,
    check_replicated,
    fingerprint,
    group_rank,
    group_size,
    wait,
)
from lvsa.errors import CommunicationError, RankMismatch
from tests.support.ranks import run_ranks


def message_of(function, *args):
    """The text of the RankMismatch that a check raises; None where it passes."""
    try:
        function(*args)
    except RankMismatch as error:
        return str(error)
    return None


def agreement(rank, world, differing):
    """``differing`` holds, by key, the value of each rank."""
    values = {"frames": 81, **{key: of_rank[rank] for key, of_rank in differing.items()}}
    return message_of(check_agreement, values, dist.group.WORLD, "attention settings")


def several_agreements(rank, world, cases):
    return [agreement(rank, world, case) for case in cases]


def test_agreement_names_each_key_and_who_holds_what():
    cases = [
        {"exchange": ["ring", "ring", "ring"]},
        {"exchange": ["ring", "needed", "needed"]},
        {"window": [3, 4, 3], "exchange": ["ring", "ring", "needed"], "n_first": [1, 1, 1]},
    ]
    results = run_ranks(3, several_agreements, cases)
    assert results[0] == results[1] == results[2], "every rank stops, with the same message"
    head = "ranks hold different attention settings; start all of them with the same:\n"
    assert results[0] == [
        None,
        head + "  exchange: 'ring' on rank 0; 'needed' on ranks 1, 2",
        head
        + "  exchange: 'ring' on ranks 0, 1; 'needed' on rank 2\n"
        + "  window: 3 on ranks 0, 2; 4 on rank 1",
    ]


def missing_key(rank, world):
    return message_of(check_agreement, {"seed": 1} if rank else {}, dist.group.WORLD)


def test_a_key_that_one_rank_lacks_differs():
    for message in run_ranks(2, missing_key):
        assert message == (
            "ranks hold different settings; start all of them with the same:\n"
            "  seed: None on rank 0; 1 on rank 1"
        )


def replicated(rank, world):
    same = torch.arange(6.0)
    swapped = same.clone()
    if rank == 2:
        swapped[[0, 3]] = swapped[[3, 0]]
    one_bit = torch.full((3,), 1.0, dtype=torch.bfloat16)
    if rank:
        one_bit[1] = torch.nextafter(one_bit[1], one_bit.new_tensor(2.0))
    nan = torch.tensor([float("nan"), 1.0])
    group = dist.group.WORLD
    return [
        message_of(check_replicated, tensors, group)
        for tensors in (
            {"latents": same, "nan": nan},
            {"latents": same, "prompt": swapped},
            {"latents": one_bit, "prompt": swapped},
            {},
        )
    ]


def test_replicated_names_the_tensors_and_the_ranks():
    results = run_ranks(3, replicated)
    assert results[0] == results[1] == results[2]
    head = "replicated inputs differ from those of rank 0: "
    tail = ". Draw the noise and encode the prompt on one rank and broadcast them"
    assert results[0] == [
        None,
        head + "prompt (rank 2)" + tail,
        head + "latents (rank 1, 2); prompt (rank 2)" + tail,
        None,
    ]


def test_fingerprint_tells_values_and_their_order_apart():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 7, generator=generator)
    assert torch.equal(fingerprint(x), fingerprint(x.clone()))
    for other in (x + 1e-6, x.flip(0), x.flip(-1), -x, x.transpose(1, 2).contiguous()):
        assert not torch.equal(fingerprint(other), fingerprint(x))


def test_one_process_agrees_with_itself():
    assert (group_rank(None), group_size(None)) == (0, 1)
    check_agreement({"frames": 1}, None)
    check_replicated({"latents": torch.zeros(1)}, None)
    wait(None, "nothing", None)


class Failing:
    def wait(self):
        raise RuntimeError("connection reset")


def test_a_failed_collective_names_rank_and_operation():
    with pytest.raises(CommunicationError, match=r"^rank 0 of 1: ring step 2 of 3 failed: conn"):
        wait(Failing(), "ring step 2 of 3", None)


def lonely(rank, world):
    """Rank 1 gathers with a rank that never comes."""
    impatient = dist.new_group(timeout=timedelta(seconds=1))
    if rank == 0:
        return None
    mine = torch.ones(2)
    work = all_gather(mine.new_empty(4), mine, impatient, async_op=True)
    with pytest.raises(CommunicationError) as caught:
        wait(work, "all-gather of keys and values", impatient)
    return str(caught.value)


def test_a_rank_that_waits_in_vain_says_for_what():
    _, message = run_ranks(2, lonely)
    assert message.startswith("rank 1 of 2: all-gather of keys and values failed: ")
