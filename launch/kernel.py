"""What computes the attention on a machine, asked before weights are loaded."""

import logging

import torch

from lvsa.backends import get_backend
from lvsa.errors import BackendUnavailable

logger = logging.getLogger(__name__)


def kernel_for(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, dry_run: bool
) -> str:
    """The kernel that a backend runs for such tensors and why, in a line.

    Args:
        backend: name of one, see `lvsa.backends`.
        device, dtype, head_dim: of queries, keys and values.
        dry_run: whether the plan may be for another machine.

    Raises:
        BackendUnavailable: where nothing would run; a dry run warns and says so in the line.
    """
    try:
        return get_backend(backend, device).check(device, dtype, head_dim)
    except BackendUnavailable as error:
        if not dry_run:
            raise
        logger.warning("%s", error)
        return f"{backend}, which does not run on this machine"
