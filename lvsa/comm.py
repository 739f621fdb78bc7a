"""Collectives that say who waited for what when they fail, and checks that ranks agree."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lvsa.errors import CommunicationError, RankMismatch
from lvsa.fingerprint import fingerprint, fingerprint_of_weights


def group_rank(group: dist.ProcessGroup | None) -> int:
    """This process's rank in ``group``; 0 without one."""
    return 0 if group is None else dist.get_rank(group)


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks in ``group``; 1 without one."""
    return 1 if group is None else dist.get_world_size(group)


def wait(work: dist.Work | None, operation: str, group: dist.ProcessGroup | None) -> None:
    """Waits for an asynchronous collective; on CUDA this orders streams and blocks no host.

    Raises:
        CommunicationError: with the rank and the operation, where it failed or timed out.
    """
    if work is None:
        return
    try:
        work.wait()
    except RuntimeError as error:
        raise CommunicationError(
            f"rank {group_rank(group)} of {group_size(group)}: {operation} failed: {error}"
        ) from error


def wait_all(
    works: Iterable[dist.Work | None], operation: str, group: dist.ProcessGroup | None
) -> None:
    """Waits for each of them; errors as `wait`."""
    for work in works:
        wait(work, operation, group)


def all_gather(
    parts: Tensor, mine: Tensor, group: dist.ProcessGroup | None, async_op: bool = False
) -> dist.Work | None:
    """Gathers equal parts of all ranks into ``parts``, one behind the other in dimension 0."""
    # The name that torch 2.13 introduced; the old one warns there.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(parts, mine, group=group, async_op=async_op)


def gathered(mine: Tensor, group: dist.ProcessGroup | None, operation: str) -> Tensor:
    """``[N, …]``: what every rank has, in rank order; errors as `wait`.

    Args:
        mine: ``[…]``, of one shape and dtype on all ranks, with at least one dimension.
        operation: what travels, for messages.
    """
    mine = mine.contiguous()
    everyone = mine.new_empty((group_size(group), *mine.shape))
    work = all_gather(everyone.flatten(0, 1), mine, group, async_op=True)
    wait(work, f"all-gather of {operation}", group)
    return everyone


def check_agreement(
    values: Mapping[str, Any], group: dist.ProcessGroup | None, what: str = "settings"
) -> None:
    """Stops every rank where ranks were given different values.

    Raises:
        RankMismatch: on all ranks alike, naming each key that differs and who has which value.
    """
    if group_size(group) == 1:
        return
    everyone: list[Any] = [None] * group_size(group)
    dist.all_gather_object(everyone, dict(values), group=group)
    problems = []
    for key in sorted({key for given in everyone for key in given}):
        by_value: dict[str, list[int]] = {}
        for rank, given in enumerate(everyone):
            by_value.setdefault(repr(given.get(key)), []).append(rank)
        if len(by_value) > 1:
            held = "; ".join(
                f"{value} on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
                for value, ranks in by_value.items()
            )
            problems.append(f"  {key}: {held}")
    if problems:
        raise RankMismatch(
            f"ranks hold different {what}; start all of them with the same:\n" + "\n".join(problems)
        )


def check_replicated(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Stops every rank where a tensor that all must share bit for bit differs among them.

    Costs one small all-gather and a host synchronization: once a generation, not in the loop.

    Raises:
        RankMismatch: on all ranks alike, naming the tensor and the ranks that differ from rank 0.
    """
    if group_size(group) == 1 or not tensors:
        return
    mine = torch.stack([fingerprint(tensor) for tensor in tensors.values()])
    everyone = gathered(mine, group, "fingerprints of inputs")
    differs = (everyone != everyone[:1]).any(-1)
    problems = [
        f"{name} (rank {', '.join(map(str, differs[:, i].nonzero().flatten().tolist()))})"
        for i, name in enumerate(tensors)
        if differs[:, i].any()
    ]
    if problems:
        raise RankMismatch(
            "replicated inputs differ from those of rank 0: "
            + "; ".join(problems)
            + ". Draw the noise and encode the prompt on one rank and broadcast them"
        )


def check_weights(modules: Mapping[str, nn.Module], group: dist.ProcessGroup | None) -> None:
    """Stops every rank where a module's weights, merged LoRAs included, differ among the ranks.

    Reads all weights once and sends a few bytes: once a session.

    Raises:
        RankMismatch: on all ranks alike, naming the tensors that differ from those of rank 0.
    """
    if group_size(group) == 1:
        return
    mine = {
        f"{name}.{key}": tuple(numbers)
        for name, module in modules.items()
        for key, numbers in zip(_tensor_names(module), _numbers(module), strict=True)
    }
    everyone: list[Any] = [None] * group_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    problems = []
    for rank, theirs in enumerate(everyone):
        keys = sorted({*everyone[0], *theirs})
        different = [key for key in keys if everyone[0].get(key) != theirs.get(key)]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            problems.append(f"  rank {rank}: {', '.join(different[:3])}{more}")
    if problems:
        raise RankMismatch(
            "ranks hold other weights than rank 0; load the same checkpoint and LoRAs on all:\n"
            + "\n".join(problems)
        )


def _tensor_names(module: nn.Module) -> list[str]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in named if tensor.device.type != "meta"]


def _numbers(module: nn.Module) -> list[list[int]]:
    return fingerprint_of_weights(module).view(-1, 2).tolist()
