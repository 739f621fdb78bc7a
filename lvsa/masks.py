"""Which text is valid, found once for each mask: finding it waits for the device.

A model may make the same mask anew in each forward, of tensors that a generation keeps: those are
what a mask is known by.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from lvsa.text import valid_positions

KEPT = 4
"""Masks that are remembered: two passes of guidance, with room."""


class _Sight(NamedTuple):
    """A tensor as it was seen: itself, without keeping it, and how often it had been written to."""

    tensor: "ReferenceType[Tensor]"
    version: int | None

    @classmethod
    def of(cls, x: Tensor) -> "_Sight":
        return cls(ref(x), None if x.is_inference() else x._version)

    def shows(self, x: Tensor) -> bool:
        # Tensors of inference mode count no writes: only the very same forward is sure of them.
        return self.version is not None and self.tensor() is x and x._version == self.version


class _Known(NamedTuple):
    sources: tuple[_Sight, ...]
    shape: torch.Size
    valid: tuple[Tensor, ...]


class KnownMasks:
    """The positions of valid text, for the processors of a pipeline."""

    def __init__(self) -> None:
        self._sources: tuple[Tensor, ...] = ()
        self._mask: Tensor | None = None
        self._valid: tuple[Tensor, ...] = ()
        self._known: deque[_Known] = deque(maxlen=KEPT)

    def follow_from(self, sources: Iterable[Tensor]) -> None:
        """Says what the masks of the coming forward are made of, and nothing else; none if unknown.

        Args:
            sources: tensors of any shape.
        """
        self._sources, self._mask, self._valid = tuple(sources), None, ()

    def valid_text(self, mask_BX: Tensor) -> tuple[Tensor, ...]:
        """For each batch element the positions of the text that may be attended (int64).

        Waits for the device where the mask is not known: once for the blocks of a forward, which
        share it, and once for all forwards whose masks follow from the same tensors.
        """
        if mask_BX is not self._mask:
            self._mask, self._valid = mask_BX, self._found(mask_BX)
        return self._valid

    # torch.compile takes a reference to a tensor for the tensor.
    @torch.compiler.disable
    def _found(self, mask_BX: Tensor) -> tuple[Tensor, ...]:
        sources = self._sources
        for known in self._known if sources else ():
            if known.shape == mask_BX.shape and len(known.sources) == len(sources):
                pairs = zip(known.sources, sources, strict=True)
                if all(sight.shows(x) for sight, x in pairs):
                    return known.valid
        valid = valid_positions(mask_BX)
        if sources:
            self._known.append(_Known(tuple(map(_Sight.of, sources)), mask_BX.shape, valid))
        return valid
