"""Rotary position embeddings that know where a rank's tokens stand in the sequence.

Both helpers take the table of the whole sequence, or one that a plan has cut already, and rotate
local queries and keys. A table of any other length is an error: a rank that rotated with its
neighbour's positions would produce a video, only a wrong one.
(RoPE: Su et al., arXiv 2104.09864; interleaved pairs as in `diffusers.models.embeddings`.)
"""

import torch
from torch import Tensor

from lvsa.errors import SequenceError


def local_rows(table: Tensor, dim: int, local_seq: int, rank: int, world: int) -> Tensor:
    """The rows of a position table that belong to this rank.

    Args:
        table: positions along ``dim``: S = world·local_seq of them, or local_seq if cut before.
        dim: dimension of the positions.
        local_seq: L.
        rank, world: this rank among how many.

    Raises:
        SequenceError: for a table that is neither the whole sequence nor this rank's part.
    """
    length = table.shape[dim]
    if length == world * local_seq:
        return table.narrow(dim, rank * local_seq, local_seq)
    if length == local_seq:
        return table
    raise SequenceError(
        f"rotary table has {length} positions; rank {rank} of {world} holds {local_seq} tokens "
        f"and takes a table of {world * local_seq} (whole) or {local_seq} (its own part)"
    )


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring pairs (x0, x1), (x2, x3), … of the last dimension.

    Args:
        x: ``[..., D]``.
        cos, sin: ``[..., D/2]``, broadcast against ``x[..., ::2]``.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def apply_rotary_1d(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    rotary_emb: tuple[Tensor, Tensor],
    local_seq: int,
    rank: int,
    world: int,
) -> tuple[Tensor, Tensor]:
    """Rotation by a table along one token axis, as Wan has it: ``cos, sin: [1, S, 1, D]``.

    Each frequency stands twice in the table; the rotation is computed in the table's dtype as
    `diffusers.models.transformers.transformer_wan` does.
    """
    cos, sin = (local_rows(table, 1, local_seq, rank, world) for table in rotary_emb)
    q, k = (rotate_interleaved(x, cos[..., 0::2], sin[..., 1::2]) for x in (q_BLHD, k_BLHD))
    return q, k


def apply_rotary_3d_cos_sin(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    rotary_emb: tuple[Tensor, Tensor],
    local_seq: int,
    rank: int,
    world: int,
) -> tuple[Tensor, Tensor]:
    """Rotation by a 3D (time, height, width) table ``cos, sin: [S, D]``, as HunyuanVideo has it.

    Computed in float32 and cast back, as `diffusers.models.embeddings.apply_rotary_emb` does.
    """
    cos, sin = (
        local_rows(table, 0, local_seq, rank, world)[None, :, None, 0::2].float()
        for table in rotary_emb
    )
    q, k = (rotate_interleaved(x.float(), cos, sin).to(x.dtype) for x in (q_BLHD, k_BLHD))
    return q, k
