"""A process group of which this process is one rank and the others are not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as dist
from torch.distributed import distributed_c10d as c10d


@contextmanager
def fake_ranks(rank: int, world: int) -> Iterator[dist.ProcessGroup]:
    """A default process group of ranks that are not there.

    Collectives return at once with whatever stands in their buffers; what ranks tell one another
    as objects is what this one says. Groups that are there already are back afterwards.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.testing._internal.distributed.multi_threaded_pg import ThreadLocalWorld

    if not torch._C._dispatch_has_kernel_for_dispatch_key("c10d::send", "Meta"):
        # PyTorch 2.8's collectives know nothing of fake tensors until this is imported.
        from torch.distributed._tools import fake_collectives  # noqa: F401

    def everyone_says(into: list[Any], mine: Any, group: Any = None) -> None:
        into[:] = [mine] * len(into)

    world_of_its_own = ThreadLocalWorld()
    with patch.object(c10d, "_world", world_of_its_own):
        # Groups are known by number in the whole process.
        world_of_its_own.group_count = 10**6
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            with patch.object(dist, "all_gather_object", everyone_says):
                assert dist.group.WORLD is not None
                yield dist.group.WORLD
        finally:
            dist.destroy_process_group()
