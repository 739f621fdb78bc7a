"""Text tokens inside the attention: which of them count, and their results on the way.

Every rank holds the text and a part of the video. A rank attends its part for the text queries, and
the states of all ranks are merged, in the same order everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.backends import Backend
from lvsa.comm import all_gather, group_size, wait_all
from lvsa.merge import AttentionState, merge_all


class TextTokens(NamedTuple):
    """Text tokens inside the attention, the same on every rank.

    Args:
        q_BXHD, k_BXHD, v_BXHD: projections of the text tokens.
        valid: for each batch element the positions of the tokens that may be attended (int64), or
            None where all may. Build it once per mask with `valid_positions`.
    """

    q_BXHD: Tensor
    k_BXHD: Tensor
    v_BXHD: Tensor
    valid: tuple[Tensor, ...] | None = None


def valid_positions(mask_BX: Tensor) -> tuple[Tensor, ...]:
    """Positions of the valid text tokens of each batch element. Synchronises with the host."""
    return tuple(row.nonzero().flatten() for row in mask_BX.bool())


@dataclass
class Received:
    """Bytes that attention received from other ranks, and the calls that it took.

    Args:
        calls: of `LVSAttention`.
        kv_bytes: of keys and values.
        text_bytes: of attention that text queries found on other ranks.
        head_bytes: of queries, keys, values and outputs, tokens exchanged for heads.
    """

    calls: int = 0
    kv_bytes: int = 0
    text_bytes: int = 0
    head_bytes: int = 0


class ValidText(NamedTuple):
    """Valid text of a part of the batch.

    Args:
        batch: the part: one element, or all of them where all text is valid.
        k_BXHD, v_BXHD: its valid tokens.
    """

    batch: slice
    k_BXHD: Tensor
    v_BXHD: Tensor


def batches(valid: Sequence[Tensor] | None) -> list[tuple[slice, Tensor | None]]:
    """Batch elements with the positions of their valid text; all of them where all is valid."""
    if valid is None:
        return [(slice(None), None)]
    return [(slice(b, b + 1), positions) for b, positions in enumerate(valid)]


def picked(x_BXHD: Tensor, positions: Tensor | None) -> Tensor:
    """The tokens at these positions; all of them without."""
    return x_BXHD if positions is None else x_BXHD.index_select(1, positions)


def valid_text(k_BXHD: Tensor, v_BXHD: Tensor, valid: Sequence[Tensor] | None) -> list[ValidText]:
    """Keys and values of the valid text, in parts of the batch that have equally many."""
    return [
        ValidText(batch, picked(k_BXHD[batch], positions), picked(v_BXHD[batch], positions))
        for batch, positions in batches(valid)
    ]


def attend_text(
    backend: Backend,
    q_BLHD: Tensor,
    parts: Sequence[ValidText],
    scale: float | None,
    state: AttentionState,
    more: bool = False,
) -> AttentionState:
    """``state`` with any queries' attention over all valid text merged into it.

    Args:
        parts: see `valid_text`.
        more: whether more keys follow; see `Backend.attend`.
    """
    states = []
    for batch, k, v in parts:
        part = AttentionState(*(x[batch] for x in state))
        states.append(backend.attend_all(q_BLHD[batch], k, v, scale, part, more))
    if len(states) == 1:
        return states[0]
    outs, lses = zip(*states, strict=True)
    return AttentionState(torch.cat(outs), torch.cat(lses))


class TextOutput:
    """Text attention on its way: states of all ranks, merged when they have arrived.

    Only the rows of valid text travel, outputs in the dtype of the queries.

    Args:
        text: the text tokens.
        states: of the valid tokens of each part of the batch.
        group: who attends other parts of the video.
        received: counts what arrives.
    """

    def __init__(
        self,
        text: TextTokens,
        states: list[AttentionState],
        group: dist.ProcessGroup | None,
        received: Received,
    ) -> None:
        self.text, self.states, self.group, self.received = text, states, group, received
        self.world = group_size(group)
        if self.world == 1:
            return
        rows = [
            (out.flatten(0, 1).to(text.q_BXHD.dtype), lse.transpose(1, 2).flatten(0, 1))
            for out, lse in states
        ]
        mine = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        self.everyone = [x.new_empty((self.world, *x.shape)) for x in mine]
        self.work = [
            all_gather(buffer.flatten(0, 1), x, group, async_op=True)
            for buffer, x in zip(self.everyone, mine, strict=True)
        ]

    def finish(self) -> Tensor:
        """``[B, X, H, D]``, the same bits on every rank; zero where the text is not valid."""
        parts = [out.flatten(0, 1) for out, _ in self.states]
        if self.world > 1:
            wait_all(self.work, "all-gather of text attention", self.group)
            self.received.text_bytes += sum(
                (self.world - 1) * x[0].numel() * x.element_size() for x in self.everyone
            )
            merged = merge_all(
                AttentionState(out_NHD[None], lse_NH.t()[None])
                for out_NHD, lse_NH in zip(*self.everyone, strict=True)
            )
            parts = [*merged.out_BLHD[0].split([len(part) for part in parts])]
        if self.text.valid is None:
            return parts[0].view(self.text.q_BXHD.shape)
        whole = parts[0].new_zeros(self.text.q_BXHD.shape)
        for of_one, positions, rows in zip(whole, self.text.valid, parts, strict=True):
            of_one.index_copy_(0, positions, rows)
        return whole
