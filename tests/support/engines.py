"""Engines and tensors that several tests of the attention share."""

import torch
from torch import Tensor
from torch import distributed as dist

from lvsa.attention import LVSAttention
from lvsa.backends.sdpa import SDPABackend
from lvsa.keyframes import published
from lvsa.shards import FrameGrid


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


def random_shard(tokens: int, seed: int, B: int = 1, H: int = 2, D: int = 8) -> list[Tensor]:
    """q, k, v: ``[B, tokens, H, D]`` in float32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, tokens, H, D, generator=generator) for _ in range(3)]
