"""Engines, tensors and expectations that several tests of the attention share."""

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.attention import LVSAttention, TextTokens, valid_positions
from lvsa.backends.sdpa import SDPABackend
from lvsa.keyframes import published
from lvsa.shards import FrameGrid
from tests.support.oracle import masked_attention, token_mask


def long_sparse(
    world: int,
    exchange: str,
    rotate: bool = False,
    P: int = 4,
    frames: int = 64,
    interval: int = 32,
) -> LVSAttention:
    """Many frames of P tokens of which each attends few; small tiles share no copies."""
    pattern = published(frames, interval=interval, window=1, n_first=1, rotate=rotate)
    return LVSAttention(
        pattern,
        FrameGrid(frames, 1, P),
        group=dist.group.WORLD if world > 1 else None,
        exchange=exchange,
        backend=SDPABackend(gather_bytes=1),
    )


def random_qkv(
    tokens: int,
    seed: int,
    B: int = 1,
    H: int = 2,
    D: int = 8,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """q, k, v: ``[B, tokens, H, D]``; the same numbers in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (B, tokens, H, D)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


def expected(
    qkv: list[Tensor],
    sets: list[set[int]],
    P: int,
    text: list[Tensor] | None = None,
    valid: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One dense masked softmax over video and text: outputs ``[B, S, …]`` and ``[B, X, …]``.

    Args:
        qkv: of all video tokens.
        sets: A(f) of every frame.
        P: tokens per frame.
        text: q, k, v of the text tokens.
        valid: ``[B, X]`` bool, text tokens that may be attended; the outputs of others are zero.
        scale: of the scores.
    """
    text = [x[:, :0] for x in qkv] if text is None else text
    B, S, X = qkv[0].shape[0], len(sets) * P, text[0].shape[1]
    mask = torch.ones(B, S + X, S + X, dtype=torch.bool)
    mask[:, :S, :S] = token_mask(sets, P)
    if valid is not None:
        mask[:, :, S:] = valid[:, None, :]
    joined = [torch.cat(pair, dim=1) for pair in zip(qkv, text, strict=True)]
    video, words = masked_attention(*joined, mask, scale).split([S, X], dim=1)
    return video, words if valid is None else words * valid[:, :, None, None]


def padded_text(X: int, B: int, dtype: torch.dtype = torch.float64) -> tuple[TextTokens, Tensor]:
    """Text of which each batch element has another part valid, and the mask ``[B, X]`` of that."""
    valid = torch.ones(B, X, dtype=torch.bool)
    valid[0, X // 2 :] = False
    valid[1:, :2] = False
    text = random_qkv(X, 99, B, dtype=dtype)
    return TextTokens(*text, valid=valid_positions(valid)), valid
