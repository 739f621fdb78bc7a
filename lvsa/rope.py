"""Rotary position embeddings that know where a rank's tokens stand in the sequence.

Both helpers take the table of the whole sequence, or one that a plan has cut already, and rotate
local queries and keys. A table of any other length is an error: a rank that rotated with its
neighbor's positions would produce a video, only a wrong one.
(RoPE: Su et al., arXiv 2104.09864; interleaved pairs as in `diffusers.models.embeddings`.)
"""

import torch
from torch import Tensor

from lvsa.errors import SequenceError
from lvsa.kernels import fused


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
    """Rotates neighboring pairs (x0, x1), (x2, x3), … of the last dimension.

    Args:
        x: ``[..., D]``.
        cos, sin: ``[..., D/2]``, broadcast against ``x[..., ::2]``.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs that stand half a head apart: (x0, x[D/2]), (x1, x[D/2 + 1]), …

    Arguments as `rotate_interleaved`.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def rotate(
    q_BLHD: Tensor, k_BLHD: Tensor, cos_LP: Tensor, sin_LP: Tensor, halves: bool = False
) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by the angles of their tokens: on GPUs with Triton in one launch.

    The kernel computes in float32, so it takes whatever PyTorch would compute in float32; the bits
    are the same.

    Args:
        q_BLHD, k_BLHD: of one shape and dtype.
        cos_LP, sin_LP: ``[L, D/2]``.
        halves: whether pairs stand half a head apart instead of side by side.
    """
    dtype = torch.promote_types(q_BLHD.dtype, cos_LP.dtype)
    if fused(q_BLHD) and fused(k_BLHD) and dtype == torch.float32:
        from lvsa.kernels.rotate import rotate as rotate_fused

        return rotate_fused(q_BLHD, k_BLHD, cos_LP, sin_LP, halves)
    turn = rotate_halves if halves else rotate_interleaved
    cos, sin = cos_LP[:, None], sin_LP[:, None]
    return turn(q_BLHD, cos, sin), turn(k_BLHD, cos, sin)


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
    cos, sin = (local_rows(table, 1, local_seq, rank, world)[0, :, 0] for table in rotary_emb)
    return rotate(q_BLHD, k_BLHD, cos[:, 0::2], sin[:, 1::2])


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
        local_rows(table, 0, local_seq, rank, world)[:, 0::2].float() for table in rotary_emb
    )
    return rotate(q_BLHD, k_BLHD, cos, sin)
