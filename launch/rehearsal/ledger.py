"""Memory that tensors take, counted as they pass PyTorch's dispatcher: fake tensors will do."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Counts the storages that operators make, each once, for as long as it lives.

    What was there before, like weights, is not counted, nor are views of it.

    Attributes:
        bytes: that stand now.
        peak: most bytes that stood at once.
        counting: whether what operators make is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.counting = True
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self.counting:
            self.note((args, kwargs), result)
        return result

    def note(self, given: Any, result: Any) -> None:
        """Takes notice of what an operator made of what it was given; both may be nested."""
        before = {x.untyped_storage()._cdata for x in tree_leaves(given) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            # Tensors on the meta device take nothing; fake ones say where they would be.
            if isinstance(x, Tensor) and x.device.type != "meta":
                self._stands(x, before)

    def restart(self) -> int:
        """The peak so far; what stands now is the least of the next one."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def passing(self, n: int) -> None:
        """Takes notice of bytes that stood for a moment beside those that stand now."""
        self.peak = max(self.peak, self.bytes + n)

    def _stands(self, x: Tensor, before: set[int]) -> None:
        storage = x.untyped_storage()
        key, n = storage._cdata, storage.nbytes()
        if key in self._known or key in before:
            return
        self._known[key] = weakref.finalize(storage, self._gone, key, n)
        self.bytes += n
        self.peak = max(self.peak, self.bytes)

    def _gone(self, key: int, n: int) -> None:
        del self._known[key]
        self.bytes -= n
