"""Tokens for heads: all-to-all around the attention, so that a rank attends whole heads.

Before, a rank of the group holds L tokens of all H heads; between, the U·L tokens of all ranks of
the group for H/U heads; after, its own tokens again. (DeepSpeed Ulysses, arXiv 2309.14509.)

Shapes: B batch, L local tokens, X text tokens, H heads, D head dim, U ranks of the group.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.comm import gathered, group_rank, group_size, wait
from lvsa.errors import LVSAError
from lvsa.text import Received


def check_heads(heads: int, ranks: int) -> None:
    """Stops where heads do not divide among the ranks of a mesh's ``heads`` dimension.

    Raises:
        LVSAError: with the numbers of ranks that work.
    """
    if heads % ranks:
        allowed = [str(n) for n in range(1, heads + 1) if heads % n == 0]
        raise LVSAError(
            f"{heads} attention heads do not divide among {ranks} ranks; allowed for this model: "
            + ", ".join(allowed)
        )


class HeadExchange:
    """All-to-alls among the ranks that share heads.

    Args:
        group: the ranks, in the order of their tokens.
        received: counts the video tokens that arrive from other ranks.
    """

    def __init__(self, group: dist.ProcessGroup, received: Received) -> None:
        self.group, self.rank, self.ranks = group, group_rank(group), group_size(group)
        self.received = received

    def to_heads(
        self, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens of the group, ``[B, U·L, H/U, D]``.

        Keys and values travel first: the exchange among frames begins with them.

        Raises:
            LVSAError: for heads that do not divide.
        """
        check_heads(q_BLHD.shape[2], self.ranks)
        kv = self._start(torch.stack([self._by_head(k_BLHD), self._by_head(v_BLHD)], dim=1))
        q = self._start(self._by_head(q_BLHD))
        k_UBLhD, v_UBLhD = self._finish(*kv, "keys and values").unbind(1)
        q_UBLhD = self._finish(*q, "queries")
        return (
            _one_behind_the_other(q_UBLhD),
            _one_behind_the_other(k_UBLhD),
            _one_behind_the_other(v_UBLhD),
        )

    def to_tokens(self, out_BShD: Tensor) -> Tensor:
        """This rank's tokens with all heads, ``[B, L, H, D]``, of ``[B, U·L, H/U, D]``."""
        parts_BULhD = out_BShD.unflatten(1, (self.ranks, -1))
        arrived_UBLhD = self._finish(
            *self._start(parts_BULhD.transpose(0, 1).contiguous()), "attention's output"
        )
        return arrived_UBLhD.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def mine(self, x_BXHD: Tensor) -> Tensor:
        """This rank's heads of text tokens, which every rank holds: ``[B, X, H/U, D]``."""
        return x_BXHD.chunk(self.ranks, dim=2)[self.rank]

    def all_heads(self, out_BXhD: Tensor) -> Tensor:
        """Text tokens with the heads of all ranks, ``[B, X, H, D]``."""
        everyone = gathered(out_BXhD, self.group, "text heads")
        return everyone.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _by_head(self, x_BLHD: Tensor) -> Tensor:
        """``[U, B, L, H/U, D]``: what goes to each rank; a view."""
        return x_BLHD.unflatten(2, (self.ranks, -1)).permute(2, 0, 1, 3, 4)

    def _start(self, parts: Tensor) -> tuple[Tensor, dist.Work | None]:
        parts = parts.contiguous()
        arrived = torch.empty_like(parts)
        return arrived, dist.all_to_all_single(arrived, parts, group=self.group, async_op=True)

    def _finish(self, arrived: Tensor, work: dist.Work | None, what: str) -> Tensor:
        wait(work, f"all-to-all of {what} among heads", self.group)
        others = arrived.numel() // self.ranks * (self.ranks - 1)
        self.received.head_bytes += others * arrived.element_size()
        return arrived


def _one_behind_the_other(parts_UBLhD: Tensor) -> Tensor:
    """``[B, U·L, h, D]`` of the ranks' tokens; a view where B is 1."""
    return parts_UBLhD.transpose(0, 1).flatten(1, 2)
