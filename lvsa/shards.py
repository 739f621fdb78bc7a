"""The video as a sequence of tokens, and its cut among the ranks.

Tokens run in T, H, W row-major order, S = T·P of them. Rank r of N holds the tokens
[r·S/N, (r+1)·S/N): a cut may fall inside a frame.
"""

import math
from dataclasses import dataclass

import numpy as np

from lvsa.errors import DivisibilityError, LVSAError
from lvsa.pattern import Bools, Ints

TokenRange = tuple[int, int]


@dataclass(frozen=True)
class FrameGrid:
    """The token grid of a video: T latent frames of P = rows·columns tokens.

    The pixel fields only serve messages and may be left at 1: they say what one token row or
    column is in pixels and what one latent frame is in video frames.
    """

    frames: int
    rows: int
    columns: int
    pixels_per_row: int = 1
    pixels_per_column: int = 1
    temporal_factor: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.rows, self.columns) < 1:
            raise LVSAError(
                f"a grid of {self.frames} × {self.rows} × {self.columns} tokens holds nothing; "
                "frames, rows and columns must be at least 1"
            )

    @property
    def tokens_per_frame(self) -> int:
        """P."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """S = T·P."""
        return self.frames * self.tokens_per_frame

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that decode from this many latent frames (causal VAE: first alone)."""
        return (latent_frames - 1) * self.temporal_factor + 1


@dataclass(frozen=True)
class Shards:
    """An even cut of a token grid among ``world`` ranks.

    Raises:
        DivisibilityError: where S % world ≠ 0, with the nearest settings that divide.
    """

    grid: FrameGrid
    world: int = 1

    def __post_init__(self) -> None:
        if self.world < 1:
            raise LVSAError(f"world size is {self.world}; it must be at least 1")
        if self.grid.tokens % self.world:
            raise DivisibilityError(divisibility_message(self.grid, self.world))

    @property
    def local_tokens(self) -> int:
        """L = S/N."""
        return self.grid.tokens // self.world

    def token_range(self, rank: int) -> TokenRange:
        """First token of a rank and the one after its last, in the whole sequence."""
        if not 0 <= rank < self.world:
            raise LVSAError(f"rank is {rank}; allowed: 0 … {self.world - 1}")
        return rank * self.local_tokens, (rank + 1) * self.local_tokens

    def frame_range(self, rank: int) -> TokenRange:
        """First frame that a rank holds tokens of, and the one after its last."""
        start, stop = self.token_range(rank)
        P = self.grid.tokens_per_frame
        return start // P, -(-stop // P)

    @property
    def held(self) -> Ints:
        """``[N, T]``: how many tokens of each frame each rank holds."""
        return np.stack([self.tokens_held(rank) for rank in range(self.world)])

    def frames_needed(self, rank: int, attended: Bools) -> Bools:
        """``[T]``: frames that some query of this rank attends; ``attended`` is [T, T]."""
        first, last = self.frame_range(rank)
        return np.asarray(attended[first:last].any(0))

    def tokens_held(self, rank: int) -> np.ndarray:
        """``[T]``: how many tokens of each frame a rank holds."""
        start, stop = self.token_range(rank)
        P = self.grid.tokens_per_frame
        frame = np.arange(self.grid.frames) * P
        return np.maximum(0, np.minimum(stop, frame + P) - np.maximum(start, frame))


def divisibility_message(grid: FrameGrid, world: int) -> str:
    """Why the grid does not divide by ``world``, and what would."""
    T, P, S = grid.frames, grid.tokens_per_frame, grid.tokens
    lines = [
        f"{T} latent frames × {P} tokens per frame = {S} tokens do not divide by {world} ranks "
        f"({S % world} left over). Nearest settings that do:"
    ]
    counts = nearest_frames(grid, world)
    lines.append("  frames: " + ", ".join(f"{grid.video_frames(t)} ({t} latent)" for t in counts))
    sizes = nearest_sizes(grid, world)
    if sizes:
        height, width = grid.pixels_per_row, grid.pixels_per_column
        lines.append(
            "  sizes (height × width): "
            + ", ".join(f"{rows * height} × {columns * width}" for rows, columns in sizes)
        )
    lines.append("  world sizes: " + ", ".join(str(n) for n in nearest_worlds(grid, world)))
    return "\n".join(lines)


def nearest_frames(grid: FrameGrid, world: int) -> list[int]:
    """Latent frame counts nearest to the grid's that divide, below and above."""
    step = world // math.gcd(grid.tokens_per_frame, world)
    below = grid.frames // step * step
    return [t for t in (below, below + step) if t > 0]


def nearest_sizes(grid: FrameGrid, world: int, reach: int = 8, most: int = 3) -> list[TokenRange]:
    """(rows, columns) nearest to the grid's whose frames divide among the ranks."""
    step = world // math.gcd(grid.frames, world)
    found = [
        (abs(dr) + abs(dc), grid.rows + dr, grid.columns + dc)
        for dr in range(-reach, reach + 1)
        for dc in range(-reach, reach + 1)
        if grid.rows + dr > 0
        and grid.columns + dc > 0
        and (grid.rows + dr) * (grid.columns + dc) % step == 0
    ]
    return [(rows, columns) for _, rows, columns in sorted(found)[:most]]


def nearest_worlds(grid: FrameGrid, world: int, most: int = 4) -> list[int]:
    """World sizes nearest to ``world`` that divide the sequence."""
    divisors = [n for n in range(1, 2 * world + 1) if grid.tokens % n == 0]
    return sorted(sorted(divisors, key=lambda n: (abs(n - world), n))[:most])
