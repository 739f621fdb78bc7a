"""Counts what a forward asks of a GPU: launches, bytes that they move, memory at its peak.

It looks at operators as they pass PyTorch's dispatcher, so that fake tensors will do.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lvsa.launch.rehearsal.ledger import Ledger

KINDS = ("merge", "rope", "cat/copy", "attention", "GEMM", "exchange", "model")
OWN = ("merge", "rope", "cat/copy")
"""Kinds that are LVSA's own and bound by memory."""

# Innermost module of the engine on the stack → kind of what it calls.
ENGINE = {
    "lvsa.merge": "merge",
    "lvsa.rope": "rope",
    "lvsa.attention": "cat/copy",
    "lvsa.heads": "cat/copy",
    "lvsa.text": "cat/copy",
    "lvsa.backends": "cat/copy",
    "lvsa.exchange": "cat/copy",
}
GEMM = ("mm", "addmm", "bmm", "baddbmm", "convolution")
# Operators that launch nothing and are no views in their schema.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
# Sends and receives that follow one another are posted together, and NCCL makes one launch of them.
POINT_TO_POINT = {"send", "recv_"}
# Those that write their first argument without reading it.
WRITERS = ("copy_", "fill_", "zero_")


@dataclass
class Count:
    """Launches of one kind, and bytes that they read and write."""

    launches: int = 0
    bytes: int = 0


class Counter(Ledger):
    """Counts launches by kind while `counting_launches`, and memory always.

    Attributes:
        counts: by kind, one of `KINDS`.
        counting_launches: whether launches count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Count] = defaultdict(Count)
        self.counting_launches = True
        self._transfer: str | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if self.counting_launches and _launches(function):
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            kind, moved = _kind(function), _moved(function, inputs, outputs)
            transfer = _name(function) if function.namespace == "c10d" else None
            if {transfer, self._transfer} <= POINT_TO_POINT:
                self.counts[kind].bytes += moved
            else:
                self._note_launch(kind, moved)
            self._transfer = transfer
        return result

    def triton(self, kernel: str, tensors: list[Tensor]) -> None:
        """Counts the launch of a Triton kernel: each of its tensors is read or written once."""
        if self.counting_launches:
            kind = "attention" if "attend" in kernel else _engine() or "model"
            self._note_launch(kind, sum(map(size, tensors)))

    def _note_launch(self, kind: str, moved: int) -> None:
        self.counts[kind].launches += 1
        self.counts[kind].bytes += moved


def size(x: Tensor) -> int:
    """Bytes of a tensor's elements, those that an expanded dimension repeats once."""
    elements = 1
    for n, stride in zip(x.shape, x.stride(), strict=True):
        elements *= n if stride else min(n, 1)
    return elements * x.element_size()


def _name(function: Any) -> str:
    return str(function.name()).partition("::")[2].partition(".")[0]


def _launches(function: Any) -> bool:
    if function.namespace == "prim":
        return False
    return not (function.is_view or _name(function) in FREE)


def _kind(function: Any) -> str:
    name = _name(function)
    if function.namespace == "c10d":
        return "exchange"
    if name in GEMM:
        return "GEMM"
    if "scaled_dot_product" in name:
        return "attention"
    return _engine() or "model"


def _engine() -> str | None:
    """Kind of the engine's module that the innermost frame of this package stands in.

    Kernels are of the kind of whoever calls them.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("lvsa.") and not name.startswith(("lvsa.studies.", "lvsa.kernels.")):
            return ENGINE.get(".".join(name.split(".")[:2]))
        frame = frame.f_back
    return None


def _moved(function: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that an operator reads and writes."""
    name = _name(function)
    if function.namespace == "c10d":
        return 0 if name == "send" else size(inputs[0])  # what is received
    if name in WRITERS:
        return sum(map(size, inputs))
    if name in ("index_select", "embedding"):
        # Of the table only the rows that are picked are read.
        return sum(map(size, inputs[1:2])) + 2 * size(outputs[0])
    if name == "index_copy_":
        return size(inputs[1]) + 2 * size(inputs[2])
    return sum(map(size, inputs)) + sum(map(size, outputs))
