"""Fingerprints of tensors from their bits: equal on every device for equal bits.

Sums of integers do not depend on the order in which they are made, so that two GPU models, or a
GPU and a CPU, agree; they tell −0.0 from 0.0 and take NaN as the bits that it is.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# The words of a tensor are laid out as rows of so many.
ROW = 1 << 12
# Rows at a time, so that a large tensor needs little memory beside it.
CHUNK_ROWS = 1 << 12


def fingerprint(tensor: Tensor) -> Tensor:
    """Two int64 numbers ``[2]`` that change with the bits of a tensor, and with their order.

    One weights the words' sums by their column, the other by their row. They are a checksum, not
    a hash: they find accidents, not attacks.
    """
    words = _words(tensor.detach().contiguous().flatten())
    n_rows, rest = divmod(words.numel(), ROW)
    rows = words[: n_rows * ROW].view(n_rows, ROW)
    device = tensor.device
    columns = torch.zeros(ROW, dtype=torch.int64, device=device)
    columns[:rest] += words[n_rows * ROW :]
    by_row = (n_rows + 1) * columns.sum()
    # int64 wraps around: sums are exact modulo 2⁶⁴, whatever their order.
    for start in range(0, n_rows, CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        columns += chunk.sum(0, dtype=torch.int64)
        number = torch.arange(start + 1, start + len(chunk) + 1, device=device)
        by_row += (chunk.sum(1, dtype=torch.int64) * number).sum()
    ramp = torch.arange(1, ROW + 1, device=device)
    return torch.stack([(columns * ramp).sum(), by_row])


def fingerprint_of_weights(module: nn.Module) -> Tensor:
    """``[2 · n]`` int64, the fingerprints of all parameters and buffers by their order.

    Those that are cut among ranks are gathered, one at a time: all of their ranks must come here.
    """
    tensors: Iterable[Tensor] = [*module.parameters(), *module.buffers()]
    found = [fingerprint(_whole(x)).cpu() for x in tensors if x.device.type != "meta"]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def _whole(x: Tensor) -> Tensor:
    whole: Tensor = x.full_tensor() if isinstance(x, DTensor) else x
    return whole


def _words(x: Tensor) -> Tensor:
    """The bits of a flat tensor as integers, eight bytes at a time where that is possible."""
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    if x.is_complex():
        x = torch.view_as_real(x).flatten()
    size = x.numel() * x.element_size()
    if size % 8 == 0:
        aligned = x.storage_offset() * x.element_size() % 8 == 0
        return (x if aligned else x.clone()).view(torch.int64)
    by_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(by_size[x.element_size()])
