"""Which device a process computes on, and what its collectives run by."""

import torch
from torch import distributed as dist

from lvsa.errors import LVSAError


def collective_backends(device_type: str) -> str:
    """What `init_process_group` takes: gloo for CPU tensors, and the device's own for the rest."""
    own: str = dist.get_default_backend_for_device(device_type)
    return own if device_type == "cpu" else f"cpu:gloo,{device_type}:{own}"


def pick_device(name: str, local_rank: int) -> torch.device:
    """The device of the process with this number on its node.

    Args:
        name: ``auto``, ``cpu`` or a kind of accelerator.

    Raises:
        LVSAError: for an accelerator that PyTorch does not see, or has too few of.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    seen = "none" if accelerator is None else accelerator.type
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if accelerator is None or name not in ("auto", seen):
        raise LVSAError(
            f"--device {name}: the accelerator that PyTorch sees here is: {seen}; allowed: "
            + ", ".join(["auto", "cpu"] + [seen] * (accelerator is not None))
        )
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise LVSAError(
            f"local rank {local_rank} has no {seen} device: this node has {count}; start at most "
            f"--nproc_per_node={count}"
        )
    return torch.device(accelerator.type, local_rank)
