"""Memory that keys and values take while an operation runs."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class KeyValueMemory(TorchDispatchMode):
    """Bytes of storages that hold keys or values, or copies of them, as they come and go.

    What an operation makes out of keys and values is counted as such, arrival buffers shaped like
    them too; what an attention kernel makes is not.

    Args:
        inputs: keys and values; their own storages are not counted.
    """

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self.inputs = [x.untyped_storage() for x in inputs]
        self.of_keys = {storage._cdata for storage in self.inputs}
        self.live = self.peak = self.largest = 0
        self.watched: dict[int, Any] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        kernel = "attention" in function.name()
        if not kernel and any(x.untyped_storage()._cdata in self.of_keys for x in given):
            for x in tree_leaves(out):
                if isinstance(x, torch.Tensor):
                    self.watch(x.untyped_storage())
        return out

    def watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.of_keys:
            return
        self.of_keys.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, size)
        self.watched[key] = weakref.ref(storage, lambda _: self.forget(key, size))

    def forget(self, key: int, size: int) -> None:
        self.of_keys.discard(key)
        del self.watched[key]
        self.live -= size
