"""Ranks that disagree, and collectives that fail, say who and what."""

import re
from datetime import timedelta

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
from tests.support.errors import refuses
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


def lines_of(message, *keys):
    """The line of each key in a message."""
    return [next(line for line in message.splitlines() if key in line) for key in keys]


def test_agreement_names_each_key_and_who_holds_what():
    cases = [
        {"exchange": ["ring", "ring", "ring"]},
        {"exchange": ["ring", "needed", "needed"]},
        {"window": [3, 4, 3], "exchange": ["ring", "ring", "needed"], "n_first": [1, 1, 1]},
    ]
    results = run_ranks(3, several_agreements, cases)
    assert results[0] == results[1] == results[2], "every rank stops, with the same message"
    same, one, two = results[0]
    assert same is None
    (exchange,) = lines_of(one, "exchange")
    assert re.findall(r"'(\w+)' on ranks? ([\d, ]+)", exchange) == [
        ("ring", "0"),
        ("needed", "1, 2"),
    ]
    exchange, window = lines_of(two, "exchange", "window")
    assert re.findall(r"'(\w+)' on ranks? ([\d, ]+)", exchange) == [
        ("ring", "0, 1"),
        ("needed", "2"),
    ]
    assert re.findall(r"(\d) on ranks? ([\d, ]+)", window) == [("3", "0, 2"), ("4", "1")]
    for message in (one, two):
        assert "attention settings" in message
        assert not any(key in message for key in ("frames", "n_first")), "those agree"


def missing_key(rank, world):
    return message_of(check_agreement, {"seed": 1} if rank else {}, dist.group.WORLD)


def test_a_key_that_one_rank_lacks_differs():
    for message in run_ranks(2, missing_key):
        (seed,) = lines_of(message, "seed")
        assert re.findall(r"(\w+) on rank (\d)", seed) == [("None", "0"), ("1", "1")]


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
    same, one, two, nothing = results[0]
    assert same is nothing is None
    found = r"(\w+) \(rank ([\d, ]+)\)"
    assert re.findall(found, one) == [("prompt", "2")]
    assert re.findall(found, two) == [("latents", "1, 2"), ("prompt", "2")]


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
    with refuses(CommunicationError, "rank 0 of 1", "ring step 2 of 3", "connection reset"):
        wait(Failing(), "ring step 2 of 3", None)


def lonely(rank, world):
    """Rank 1 gathers with a rank that never comes."""
    impatient = dist.new_group(timeout=timedelta(seconds=1))
    if rank == 0:
        return None
    mine = torch.ones(2)
    work = all_gather(mine.new_empty(4), mine, impatient, async_op=True)
    with refuses(CommunicationError, "rank 1 of 2", "all-gather of keys and values"):
        wait(work, "all-gather of keys and values", impatient)
    return True


def test_a_rank_that_waits_in_vain_says_for_what():
    assert run_ranks(2, lonely) == [None, True]
