"""What an exchange is: a plan, solved once for every offset, and a runtime that follows it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.layout import BlockLayout, Piece, build_layout
from lvsa.pattern import Bools, Ints, Pattern
from lvsa.shards import Shards, TokenRange


class KVBlock(NamedTuple):
    """Keys and values that are here now, and what the local queries attend of them."""

    k_BCHD: Tensor
    v_BCHD: Tensor
    layout: BlockLayout


class Slice(NamedTuple):
    """Tokens [start, stop) of a buffer that go to another rank, or come from it."""

    peer: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class KVBlockPlan:
    """A block before its data exist: its contents and its layout.

    Args:
        pieces: the sequence ranges that the local queries may attend, by buffer position.
        tokens: C, length of the buffer.
        layout: what the local queries attend in it.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    layout: BlockLayout


@dataclass(frozen=True)
class ExchangePlan:
    """What one rank does in one exchange at one offset.

    Args:
        blocks: in the order of the stream; the first is the rank's own shard.
        received_tokens: tokens (one key and one value each) that arrive from other ranks.
    """

    blocks: tuple[KVBlockPlan, ...]
    received_tokens: int

    @property
    def pairs(self) -> int:
        """(query, key) token pairs over all blocks."""
        return sum(block.layout.pairs for block in self.blocks)

    def to(self, device: torch.device | str) -> Self:
        """The same plan with its tables on a device."""
        blocks = tuple(replace(block, layout=block.layout.to(device)) for block in self.blocks)
        return replace(self, blocks=blocks)


class Phase(NamedTuple):
    """What travels at a time in an exchange, among all ranks, and what is attended of it.

    Args:
        sender, receiver: ``[n]``, ranks.
        tokens: ``[n]``, that go from the one to the other.
        pairs: ``[N]``, (query, key) token pairs that each rank attends once they are there.
        hops: transfers one after the other that it is made of.
    """

    sender: Ints
    receiver: Ints
    tokens: Ints
    pairs: Ints
    hops: int = 1


Plan = TypeVar("Plan", bound=ExchangePlan)

MOST_CELLS = 10**9
"""Cells of a pattern, over all offsets, up to which plans are made ahead: about 1000 latent frames
at every offset. The plans of longer videos would take gigabytes."""


class PlansWhenNeeded(Sequence[Plan]):
    """The plans of a very long video: each made in the first layer of a step, the last one kept.

    Args:
        n_offsets: how many there are.
        make: offset → plan.
    """

    def __init__(self, n_offsets: int, make: Callable[[int], Plan]) -> None:
        self.n_offsets, self.make = n_offsets, make
        self._last: tuple[int, Plan] | None = None

    def __len__(self) -> int:
        return self.n_offsets

    @overload
    def __getitem__(self, offset: int) -> Plan: ...
    @overload
    def __getitem__(self, offset: slice) -> Sequence[Plan]: ...
    def __getitem__(self, offset: int | slice) -> Plan | Sequence[Plan]:
        if isinstance(offset, slice):
            return [self[o] for o in range(*offset.indices(len(self)))]
        if self._last is None or self._last[0] != offset:
            self._last = None  # or two of them would stand side by side
            self._last = offset, self.make(range(self.n_offsets)[offset])
        return self._last[1]


class Exchange(ABC, Generic[Plan]):
    """A way for keys and values to come to the rank that attends them.

    Plans for all offsets are made when an exchange is built, none later; those of very long videos
    when a step begins (`MOST_CELLS`). On one rank nothing travels, whichever exchange it is.

    Args:
        shards: the cut of the sequence.
        pattern: what attends what.
        rank: this rank, within ``group``.
        group: process group of the sequence shards; None for one process.
        device: where the tables of the plans are read.
    """

    name: ClassVar[str]

    def __init__(
        self,
        shards: Shards,
        pattern: Pattern,
        rank: int,
        group: dist.ProcessGroup | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shards, self.rank, self.group = shards, rank, group
        plans = PlansWhenNeeded(
            pattern.n_offsets,
            lambda offset: self.plan(shards, pattern.attended[offset], rank).to(device),
        )
        few = pattern.n_offsets * pattern.frames**2 <= MOST_CELLS
        self.plans: Sequence[Plan] = list(plans) if few else plans
        self.received_bytes = 0
        """Bytes that arrived from other ranks since this exchange was built."""

    @classmethod
    @abstractmethod
    def plan(cls, shards: Shards, attended: Bools, rank: int) -> Plan:
        """The plan of one rank at one offset; ``attended`` is the [T, T] matrix."""

    @classmethod
    @abstractmethod
    def phases(cls, shards: Shards, attended: Bools) -> list[Phase]:
        """What travels among all ranks at one offset, in its order, by table alone."""

    @classmethod
    def received_tokens(cls, shards: Shards, attended: Bools) -> Ints:
        """``[N]``: tokens that each rank receives at one offset, by table alone."""
        received = np.zeros(shards.world, dtype=np.int64)
        for phase in cls.phases(shards, attended):
            np.add.at(received, phase.receiver, phase.tokens)
        return received

    @classmethod
    def received_tokens_by_offset(
        cls, shards: Shards, pattern: Pattern, offsets: int | None = None
    ) -> Ints:
        """``[n_offsets, N]``: tokens that each rank receives per layer and call.

        Args:
            offsets: how many of the pattern's offsets to count; all without it.
        """
        reached = pattern.attended[:offsets]
        return np.stack([cls.received_tokens(shards, matrix) for matrix in reached])

    @abstractmethod
    def stream(self, k_BLHD: Tensor, v_BLHD: Tensor, offset: int) -> Iterator[KVBlock]:
        """Blocks as they become available; attend each before asking for the next."""

    def start_transfers(
        self,
        leaving: Tensor,
        sends: Sequence[Slice],
        arriving: Tensor,
        receives: Sequence[Slice],
    ) -> list[dist.Work]:
        """Posts sends of slices of one buffer and receives into slices of another.

        Those between two ranks meet in the order in which both of them list them.
        """
        operations = [
            dist.P2POp(operation, buffer[start:stop], group=self.group, group_peer=peer)
            for operation, buffer, slices in (
                (dist.isend, leaving, sends),
                (dist.irecv, arriving, receives),
            )
            for peer, start, stop in slices
        ]
        return dist.batch_isend_irecv(operations) if operations else []

    def count(self, buffer: Tensor) -> None:
        """Adds a buffer that arrived to the byte count."""
        self.received_bytes += buffer.numel() * buffer.element_size()


def queries_of(shards: Shards, attended: Bools) -> Ints:
    """``[N, T]``: how many queries of each rank attend each frame."""
    counted = np.empty((shards.world, shards.grid.frames), dtype=np.int64)
    # Rank by rank, which holds few frames: the matrix of a long video is not copied as numbers.
    for rank in range(shards.world):
        first, last = shards.frame_range(rank)
        counted[rank] = shards.tokens_held(rank)[first:last] @ attended[first:last]
    return counted


def own_pairs(shards: Shards, attended: Bools) -> Ints:
    """``[N]``: pairs that each rank attends in its own shard."""
    return np.asarray((queries_of(shards, attended) * shards.held).sum(1))


def other_pairs(shards: Shards, attended: Bools) -> Ints:
    """``[N]``: pairs that each rank attends of what other ranks hold."""
    elsewhere = shards.grid.tokens_per_frame - shards.held
    return np.asarray((queries_of(shards, attended) * elsewhere).sum(1))


def block_plan(
    shards: Shards, attended: Bools, rank: int, pieces: Sequence[Piece], tokens: int
) -> KVBlockPlan:
    """A block with its layout for the queries of ``rank``."""
    P = shards.grid.tokens_per_frame
    layout = build_layout(shards.token_range(rank), pieces, attended, P)
    return KVBlockPlan(tuple(pieces), tokens, layout)


def own_block(shards: Shards, attended: Bools, rank: int) -> KVBlockPlan:
    """The block that every stream begins with: the rank's own shard, in place."""
    start, stop = shards.token_range(rank)
    return block_plan(shards, attended, rank, [Piece(start, stop, 0)], stop - start)


def slices_of(ranges: Iterable[Sequence[TokenRange]], peers: Iterable[int]) -> list[Slice]:
    """A slice for each list of ranges, of a buffer in which these stand one behind the other."""
    slices, position = [], 0
    for part, peer in zip(ranges, peers, strict=True):
        stop = position + sum(b - a for a, b in part)
        slices.append(Slice(peer, position, stop))
        position = stop
    return slices


def tokens_of(ranges: Iterable[TokenRange], shift: int) -> Tensor:
    """``[n]`` int64: the tokens of some ranges in their order, counted from ``shift``."""
    tokens = [torch.arange(start - shift, stop - shift) for start, stop in ranges]
    return torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.int64)


def pack_kv(k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """Keys and values as one token-major buffer ``[L, 2, B, H, D]``.

    Tokens come first so that any range of tokens is one contiguous piece of memory, and what
    arrives from several ranks stands behind one another without a copy.
    """
    B, L, H, D = k_BLHD.shape
    packed = k_BLHD.new_empty((L, 2, B, H, D))
    packed[:, 0] = k_BLHD.transpose(0, 1)
    packed[:, 1] = v_BLHD.transpose(0, 1)
    return packed


def pack_rows(k_BLHD: Tensor, v_BLHD: Tensor, rows: Tensor) -> Tensor:
    """Chosen tokens of keys and values as one token-major buffer ``[n, 2, B, H, D]``.

    Args:
        rows: ``[n]`` int64, local tokens in the order in which they are to stand.
    """
    B, _, H, D = k_BLHD.shape
    packed = k_BLHD.new_empty((rows.numel(), 2, B, H, D))
    for i, x_BLHD in enumerate((k_BLHD, v_BLHD)):
        torch.index_select(x_BLHD.transpose(0, 1), 0, rows, out=packed[:, i])
    return packed


def unpack_kv(packed_C2BHD: Tensor) -> tuple[Tensor, Tensor]:
    """Views ``k_BCHD, v_BCHD`` of a token-major buffer; nothing is copied."""
    k_CBHD, v_CBHD = packed_C2BHD.unbind(1)
    return k_CBHD.transpose(0, 1), v_CBHD.transpose(0, 1)


def token_bytes(batch: int, heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one token's key and value."""
    return 2 * batch * heads * head_dim * dtype.itemsize
