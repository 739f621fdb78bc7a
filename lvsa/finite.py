"""Latents that are no longer numbers are found in the step that made them.

Half precision overflows to infinity, infinity becomes not-a-number, and a video of those is black
without an error anywhere. The check costs a reduction a step and never waits for the device: a
result is read when it has arrived, at the latest when the generation ends.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from lvsa.errors import NonFiniteError


class _Pending(NamedTuple):
    """A check whose result may still be on its way to the host."""

    what: str
    dtype: torch.dtype
    finite: Tensor
    arrived: torch.Event | None


class FiniteCheck:
    """Holds tensors against not-a-number and infinity without stopping the device's stream."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def check(self, what: str, tensor: Tensor) -> None:
        """Looks at a tensor, and reports earlier ones whose results have arrived.

        Args:
            what: name of the tensor for the message, with the step.

        Raises:
            NonFiniteError: for the first tensor that was not finite.
        """
        if tensor.is_floating_point() and tensor.device.type != "meta":
            finite = tensor.detach().isfinite().all()
            event = None
            if tensor.device.type != "cpu":
                finite = finite.to("cpu", non_blocking=True)
                event = torch.Event(tensor.device)
                event.record()
            self._pending.append(_Pending(what, tensor.dtype, finite, event))
        self._report(wait=False)

    def finish(self) -> None:
        """Waits for the results that are still on their way; errors as `check`."""
        self._report(wait=True)

    def forget(self) -> None:
        """Drops what is on its way: a new generation begins."""
        self._pending.clear()

    def _report(self, wait: bool) -> None:
        while self._pending:
            first = self._pending[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait:
                    return
                first.arrived.synchronize()
            self._pending.popleft()
            if not bool(first.finite):
                self._pending.clear()
                raise NonFiniteError(
                    f"infinity or not-a-number in {first.what} "
                    f"({str(first.dtype).removeprefix('torch.')}): the video would be black or "
                    "noise. In half precision values overflow: try --dtype bfloat16 or float32; "
                    "otherwise look at the weights and the guidance scale"
                )
