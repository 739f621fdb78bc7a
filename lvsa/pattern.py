"""The attention pattern: one boolean matrix [T, T] per keyframe offset.

``attended[o][f, g]`` says whether the queries of latent frame f attend the keys of latent frame g
while the keyframes stand at offset o. It is fixed before any rank is consulted; kernel layouts,
exchange tables, byte counts, FLOPs and pictures are all derived from it.

`lvsa.published` and `lvsa.even` make the patterns of LVSA. A pattern of your own is a matrix:

    radial = Pattern.of(np.abs(np.subtract.outer(frames, frames)) <= 8, description="radial")
    both = radial | lvsa.published(len(frames), horizon=21)
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvsa.errors import LVSAError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_FRAMES = 10_000
"""Latent frames that a pattern may have, and offsets: one matrix of them takes 100 MB."""


class FrameMatrices(Sequence[Bools]):
    """Boolean matrices ``[n_offsets, T, T]``, each made when it is asked for.

    A video of thousands of latent frames has hundreds of offsets, and nobody needs all of their
    matrices at once. The last one is kept. ``np.asarray`` gives the whole array. A matrix in
    which some frame attends nothing is an error when it is made.

    Args:
        n_offsets: how many there are.
        frames: T.
        make: offset → matrix ``[T, T]``; a pure function.
    """

    def __init__(self, n_offsets: int, frames: int, make: Callable[[int], Bools]) -> None:
        self.shape = (n_offsets, frames, frames)
        self._make = make
        self._last: tuple[int, Bools] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, offset: int) -> Bools: ...
    @overload
    def __getitem__(self, offset: slice) -> Sequence[Bools]: ...
    def __getitem__(self, offset: int | slice) -> Bools | Sequence[Bools]:
        if isinstance(offset, slice):
            return [self[o] for o in range(*offset.indices(len(self)))]
        if not -len(self) <= offset < len(self):
            raise IndexError(f"offset {offset} of a pattern with {len(self)}")
        offset %= len(self)
        if self._last is None or self._last[0] != offset:
            matrix = np.asarray(self._make(offset), dtype=np.bool_)
            check_rows(matrix, offset)
            matrix.flags.writeable = False
            self._last = offset, matrix
        return self._last[1]

    def __iter__(self) -> Iterator[Bools]:
        return (self[offset] for offset in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack(list(self)).astype(dtype or np.bool_, copy=False)


class _Summary(NamedTuple):
    """What one pass over the matrices tells."""

    frames_attended: Ints
    anchors: Bools
    digest: str


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which latent frames attend which, at every keyframe offset.

    Args:
        attended: ``[n_offsets, T, T]``, see `FrameMatrices`.
        fixed_anchors: frames that every query attends at every offset on purpose: the first ones
            and those that hold an image. Pictures set them apart from keyframes.
        description: one line for a reader.
        parameters: what it was made from, by name, for the record.
    """

    attended: FrameMatrices
    fixed_anchors: tuple[int, ...] = ()
    description: str = "a pattern of its own"
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls,
        matrix: ArrayLike,
        *,
        fixed_anchors: Sequence[int] = (),
        description: str = "a pattern of its own",
    ) -> "Pattern":
        """A pattern from its matrix, ``[T, T]``, or ``[n_offsets, T, T]`` with one for each offset.

        Raises:
            LVSAError: for another shape, a frame that attends nothing, or an anchor that is not
                attended by all.
        """
        array = np.array(matrix, dtype=np.bool_)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[1] != array.shape[2] or 0 in array.shape:
            raise LVSAError(
                f"a pattern takes a matrix [T, T] or [n_offsets, T, T] of frames; got "
                f"{list(np.shape(matrix))}"
            )
        check_frames(array.shape[1])
        for offset, one in enumerate(array):
            check_rows(one, offset)
        T = array.shape[1]
        missing = [f for f in fixed_anchors if not (0 <= f < T and array[:, :, f].all())]
        if missing:
            raise LVSAError(
                f"frames {missing} are called anchors, but not every frame attends them"
            )
        matrices = FrameMatrices(len(array), T, array.__getitem__)
        return cls(matrices, tuple(fixed_anchors), description)

    @property
    def frames(self) -> int:
        """T, latent frames."""
        return self.attended.shape[1]

    @property
    def n_offsets(self) -> int:
        """Distinct keyframe offsets: 1 where keyframes stand still."""
        return self.attended.shape[0]

    def offset(self, step: int) -> int:
        """The keyframe offset of a denoising step, counted from 0 in every generation."""
        if step < 0:
            raise LVSAError(f"denoising step is {step}; steps are counted from 0")
        return step % self.n_offsets

    def __or__(self, other: "Pattern") -> "Pattern":
        """What either of them attends."""
        return _combined(self, other, np.logical_or, "or")

    def __and__(self, other: "Pattern") -> "Pattern":
        """What both of them attend."""
        return _combined(self, other, np.logical_and, "and")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def _summary(self) -> _Summary:
        # The shape counts too: matrices of other shapes may pack to the same bits.
        digest = hashlib.sha256(repr(self.attended.shape).encode())
        counts, anchors = [], []
        for matrix in self.attended:
            counts.append(matrix.sum(1, dtype=np.int64))
            anchors.append(matrix.all(0))
            digest.update(np.packbits(matrix).tobytes())
        return _Summary(np.stack(counts), np.stack(anchors), digest.hexdigest()[:16])

    @property
    def frames_attended(self) -> Ints:
        """``[n_offsets, T]``: how many frames each frame attends."""
        return self._summary.frames_attended

    @property
    def anchors(self) -> Bools:
        """``[n_offsets, T]``: frames that every query attends."""
        return self._summary.anchors

    @property
    def density(self) -> float:
        """Attended share of all (query, key) frame pairs, over all offsets; 1.0 is dense."""
        return float(self.frames_attended.mean()) / self.frames

    @property
    def is_dense(self) -> bool:
        """Whether every query attends every key at every offset."""
        return bool((self.frames_attended == self.frames).all())

    @property
    def digest(self) -> str:
        """A short fingerprint of the matrices: ranks compare it before they run."""
        return self._summary.digest

    @property
    def identity(self) -> str:
        """Digest and description, for messages that tell two patterns apart."""
        return f"{self.digest} ({self.frames} latent frames; {self.description})"


def dense(frames: int) -> Pattern:
    """Every frame attends every frame."""
    check_frames(frames)
    everything = np.ones((frames, frames), dtype=np.bool_)
    return Pattern(FrameMatrices(1, frames, lambda _: everything.copy()), description="dense")


def check_frames(frames: int) -> None:
    """Stops for a number of latent frames that no pattern can have."""
    if frames < 1:
        raise LVSAError(f"frames is {frames} latent frames; it must be at least 1")
    if frames > MOST_FRAMES:
        raise LVSAError(
            f"a video of {frames:,} latent frames is more than a pattern is made for; at most "
            f"{MOST_FRAMES:,}"
        )


def check_rows(matrix: Bools, offset: int) -> None:
    """Stops for a matrix in which a frame attends nothing: its attention has no value."""
    empty = np.flatnonzero(~matrix.any(1))
    if len(empty):
        raise LVSAError(
            f"frame {empty[0]} attends nothing at offset {offset}; every frame must attend at "
            "least one, usually itself"
        )


def _combined(a: Pattern, b: Pattern, operation: Any, word: str) -> Pattern:
    if a.frames != b.frames:
        raise LVSAError(
            f"patterns of {a.frames} and {b.frames} latent frames cannot be combined; they must "
            "be of one video"
        )
    anchors = {*a.fixed_anchors, *b.fixed_anchors}
    if word == "and":
        anchors = {f for f in anchors if b.anchors[:, f].all() and a.anchors[:, f].all()}
    n_offsets = math.lcm(a.n_offsets, b.n_offsets)
    if n_offsets > MOST_FRAMES:
        raise LVSAError(
            f"patterns of {a.n_offsets} and {b.n_offsets} keyframe offsets come round after "
            f"{n_offsets:,} steps; at most {MOST_FRAMES:,}. Let one of them stand still, or give "
            "both the same interval"
        )
    return Pattern(
        FrameMatrices(
            n_offsets,
            a.frames,
            lambda o: operation(a.attended[o % a.n_offsets], b.attended[o % b.n_offsets]),
        ),
        tuple(sorted(anchors)),
        f"({a.description}) {word} ({b.description})",
    )
