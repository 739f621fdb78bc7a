"""Rank-aware block-sparse attention: the pattern, an exchange and a kernel put together.

The whole algorithm is the loop in `LVSAttention.__call__`: attend what is here, then what arrives,
and merge by log-sum-exp. Every world size and every exchange computes the same attention.

Shapes: B batch, L local tokens, C tokens of a block, X text tokens, H heads, D head dim.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.backends import Backend, get_backend
from lvsa.backends.tile_by_tile import nothing_attended
from lvsa.comm import check_agreement, group_rank, group_size
from lvsa.errors import LVSAError, SequenceError
from lvsa.exchange import Exchange, get_exchange
from lvsa.heads import HeadExchange
from lvsa.merge import AttentionState
from lvsa.pattern import Pattern
from lvsa.shards import FrameGrid, Shards
from lvsa.text import (
    Received,
    TextOutput,
    TextTokens,
    ValidText,
    attend_text,
    batches,
    picked,
    valid_positions,
    valid_text,
)

__all__ = ["TABLES_KEPT", "LVSAttention", "Received", "TextTokens", "valid_positions"]


TABLES_KEPT = 4
"""Grids and patterns whose exchange tables an engine keeps."""


class LVSAttention:
    """Attention of a video's tokens, cut among the ranks of a group, by a pattern.

    Args:
        pattern: which latent frames attend which; None until `configure` says it.
        grid: the token grid of the whole video; None until then too.
        group: process group among which keys and values travel; None for one process.
        heads: process group that exchanges tokens for heads around the attention; None without.
            The sequence is cut among both, and ranks of ``heads`` hold neighboring parts.
        exchange: name of the KV exchange, see `lvsa.exchange`; no effect on one rank.
        backend: name of the attention kernel, see `lvsa.backends`, or one built by hand.
        device: where the tensors will be.

    Raises:
        DivisibilityError: where the tokens do not divide among the ranks.
        RankMismatch: where the ranks hold different patterns, grids, exchanges or backends.
    """

    pattern: Pattern
    grid: FrameGrid

    def __init__(
        self,
        pattern: Pattern | None = None,
        grid: FrameGrid | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        heads: dist.ProcessGroup | None = None,
        exchange: str = "needed",
        backend: str | Backend = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        # Before anything that a rank might refuse alone, while the others wait for it.
        settings = {
            "grid": grid,
            "pattern": None if pattern is None else pattern.identity,
            "exchange": exchange,
            "backend": backend if isinstance(backend, str) else backend.name,
        }
        for ranks in (group, heads):
            check_agreement(settings, ranks, what="attention settings")
        self.group, self.device = group, torch.device(device)
        self.received = Received()
        self.heads = None if heads is None else HeadExchange(heads, self.received)
        # Of the sequence outside of the attention.
        self.rank = group_rank(group) * group_size(heads) + group_rank(heads)
        self.world = group_size(group) * group_size(heads)
        self.backend = get_backend(backend, device) if isinstance(backend, str) else backend
        self.exchange_type = get_exchange(exchange)
        self._exchanges: OrderedDict[tuple[Pattern, FrameGrid], Exchange[Any]] = OrderedDict()
        if pattern is not None and grid is not None:
            self.configure(pattern, grid)
        self.step = 0

    def configure(self, pattern: Pattern, grid: FrameGrid) -> None:
        """Makes this the engine of another pattern and grid; the tables of a few are kept.

        Ranks are not asked whether they agree: whoever calls this on several has done so.

        Raises:
            DivisibilityError: where the tokens do not divide among the ranks.
            LVSAError: for a pattern of another length than the grid's.
        """
        if pattern.frames != grid.frames:
            raise LVSAError(
                f"the pattern is for {pattern.frames} latent frames, the grid has {grid.frames}"
            )
        shards = Shards(grid, self.world)
        exchange = self._exchanges.get((pattern, grid))
        if exchange is None:
            within, rank = Shards(grid, group_size(self.group)), group_rank(self.group)
            exchange = self.exchange_type(within, pattern, rank, self.group, self.device)
            self._exchanges[pattern, grid] = exchange
            if len(self._exchanges) > TABLES_KEPT:
                self._exchanges.popitem(last=False)
        self._exchanges.move_to_end((pattern, grid))
        self.pattern, self.grid = pattern, grid
        self.shards, self.exchange = shards, exchange

    @property
    def local_tokens(self) -> int:
        """L, tokens of this rank."""
        return self.shards.local_tokens

    # A graph of its own for every step, block and rank would be compiled here: tables, collectives
    # and counters change with them. What is around it is compiled once.
    @torch.compiler.disable
    def __call__(
        self,
        q_BLHD: Tensor,
        k_BLHD: Tensor,
        v_BLHD: Tensor,
        text: TextTokens | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of this rank's video tokens, and of the text tokens where there are any.

        Every video query attends its pattern and all valid text; every valid text query attends all
        video and all valid text, the output of the others is zero. The text is counted once,
        however many ranks hold it.

        Args:
            q_BLHD, k_BLHD, v_BLHD: this rank's video tokens, rotated.
            text: text tokens of a dual-stream or joint model, replicated.
            scale: of the scores; 1/sqrt(D) by default.

        Returns:
            ``out_BLHD`` and ``text_out_BXHD`` (None without text), in the dtype of the queries.

        Raises:
            SequenceError: for another number of tokens than this rank's share of T·P.
            LVSAError: where gradients are asked for.
        """
        self._check(q_BLHD, k_BLHD, v_BLHD, text)
        if self.heads is None:
            return self._attend(q_BLHD, k_BLHD, v_BLHD, text, scale)
        qkv = self.heads.to_heads(q_BLHD, k_BLHD, v_BLHD)
        if text is not None:
            q, k, v, valid = text
            mine = self.heads.mine
            text = TextTokens(mine(q), mine(k), mine(v), valid)
        out, text_out = self._attend(*qkv, text, scale)
        out = self.heads.to_tokens(out)
        return out, None if text_out is None else self.heads.all_heads(text_out)

    def _attend(
        self,
        q_BLHD: Tensor,
        k_BLHD: Tensor,
        v_BLHD: Tensor,
        text: TextTokens | None,
        scale: float | None,
    ) -> tuple[Tensor, Tensor | None]:
        """`__call__` for the heads that this rank attends."""
        words = [] if text is None else valid_text(text.k_BXHD, text.v_BXHD, text.valid)
        text_out = None if text is None else self._start_text(text, words, k_BLHD, v_BLHD, scale)
        state: AttentionState | None = None
        offset = self.pattern.offset(self.step)
        to_come = len(self.exchange.plans[offset].blocks)
        before = self.exchange.received_bytes
        for block in self.exchange.stream(k_BLHD, v_BLHD, offset):
            to_come -= 1
            more = to_come > 0 or text is not None
            state = self.backend.attend(q_BLHD, *block, scale, state, more)
            del block  # or its keys and values would stand beside those of the block after next
        assert state is not None, "a stream begins with the rank's own shard"
        if text is not None:
            state = attend_text(self.backend, q_BLHD, words, scale, state)
        self.received.calls += 1
        self.received.kv_bytes += self.exchange.received_bytes - before
        finished = None if text_out is None else text_out.finish().to(q_BLHD.dtype)
        return state.out_BLHD.to(q_BLHD.dtype), finished

    def _check(self, q: Tensor, k: Tensor, v: Tensor, text: TextTokens | None) -> None:
        if not hasattr(self, "shards"):
            raise SequenceError(
                "LVSA's attention was called before it was given a pattern and a grid"
            )
        L = self.local_tokens
        inputs = (q, k, v) if text is None else (q, k, v, text.q_BXHD, text.k_BXHD, text.v_BXHD)
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise LVSAError(
                "LVSA's attention has no gradients: queries, keys or values require one; call the "
                "model under torch.no_grad() or torch.inference_mode()"
            )
        for name, x in (("queries", q), ("keys", k), ("values", v)):
            if x.dim() != 4 or x.shape[1] != L:
                T, P = self.grid.frames, self.grid.tokens_per_frame
                raise SequenceError(
                    f"{name} are {tuple(x.shape)}; LVSA was set up for T = {T} latent frames × "
                    f"P = {P} tokens = {T * P} on {self.world} rank(s), so each holds {L} tokens "
                    "in dimension 1. Set it up again for this size and frame count"
                )

    def _start_text(
        self,
        text: TextTokens,
        words: list[ValidText],
        k_BLHD: Tensor,
        v_BLHD: Tensor,
        scale: float | None,
    ) -> TextOutput:
        """Valid text queries over the local video, sent to all ranks while that is attended."""
        travels = group_size(self.group) > 1
        # Every rank holds the text; one of them counts it.
        counts = group_rank(self.group) == 0
        states = []
        for (batch, positions), part in zip(batches(text.valid), words, strict=True):
            q = picked(text.q_BXHD[batch], positions)
            if not q.shape[1]:
                states.append(nothing_attended(q))  # kernels may want a query
                continue
            k, v = k_BLHD[batch], v_BLHD[batch]
            state = self.backend.attend_all(q, k, v, scale, more=counts or travels)
            if counts:
                state = self.backend.attend_all(q, *part[1:], scale, state, travels)
            states.append(state)
        return TextOutput(text, states, self.group, self.received)
