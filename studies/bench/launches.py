"""What a layer asks of a GPU, counted without one: launches, bytes moved and memory.

    python studies/bench/launches.py --models wan-14b --ranks 1 2 4 8

One rank's sharded forward runs at full size on fake CUDA tensors: every operator passes PyTorch's
dispatcher and is counted, nothing is computed. Bytes are what the operators read and write once
each; exchange counts bytes that arrive.
"""

import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from lvsa.errors import LVSAError
from lvsa.launch.config import ExchangeName
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import versions, write_record
from lvsa.pattern import dense
from lvsa.settings import LVSASettings
from lvsa.studies.bench.counter import KINDS, OWN, Count, Counter
from lvsa.studies.bench.fake_forward import fake_forward
from lvsa.studies.bench.fake_gpu import triton_launches
from lvsa.studies.bench.models import model_named

logger = logging.getLogger("lvsa.studies.bench.launches")
LAYERS = 3
"""Blocks that run; the middle one is counted. Others are like it."""


@dataclass(frozen=True)
class LaunchesConfig:
    """Counts launches, bytes and memory of one layer without a GPU. Lists are combined."""

    models: tuple[str, ...] = ("wan-1.3b", "wan-14b")
    """Models, by name."""
    latent_frames: int = 81
    """T: latent frames."""
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """N: ranks that share the sequence."""
    rank: int | None = None
    """Which of them is looked at. Default: the last of the first half."""
    exchanges: tuple[ExchangeName, ...] = ("needed",)
    """How keys and values travel; one rank needs no exchange."""
    backends: tuple[str, ...] = ("auto",)
    """Attention kernels."""
    dense: bool = False
    """Every frame attends every frame."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """dtype of the weights."""
    capability: tuple[int, int] = (9, 0)
    """Compute capability of the GPU."""
    output_dir: Path = Path("outputs/launches")
    """Folder for launches.json and the table launches.md."""


@dataclass(frozen=True)
class Row:
    """One layer of one rank.

    Args:
        counts: launches and bytes by kind.
        peak: most bytes of activations and buffers in a forward of `LAYERS` layers.
    """

    model: str
    backend: str
    exchange: str
    ranks: int
    rank: int
    counts: dict[str, Count]
    peak: int

    @property
    def launches(self) -> int:
        """Launches of all kinds."""
        return sum(count.launches for count in self.counts.values())

    @property
    def own_bytes(self) -> int:
        """Bytes that LVSA's own memory-bound work moves."""
        return sum(self.counts[kind].bytes for kind in OWN if kind in self.counts)


def count_layer(config: LaunchesConfig, model: str, world: int, exchange: str, backend: str) -> Row:
    """Counts one layer of one rank.

    Raises:
        LVSAError: for an unknown model or a rank that there is none of.
        DivisibilityError: where the tokens do not divide among the ranks.
    """
    size, dtype = model_named(model), getattr(torch, config.dtype)
    rank = (world - 1) // 2 if config.rank is None else config.rank
    if not 0 <= rank < world:
        raise LVSAError(f"--rank is {rank}; of {world} ranks there are 0 … {world - 1}")
    grid = size.grid(config.latent_frames)
    pattern = (
        dense(grid.frames)
        if config.dense
        else LVSASettings(rotate_keyframes=True).pattern(
            grid.frames, size.temporal_factor, size.horizon
        )
    )
    counter = Counter()
    counter.counting_launches = False
    with fake_forward(
        size.build(LAYERS, dtype),
        size.adapter,
        pattern,
        grid,
        rank=rank,
        world=world,
        exchange=exchange,
        backend=backend,
        dtype=dtype,
        capability=config.capability,
    ) as forward:
        block = forward.blocks[1]
        block.register_forward_pre_hook(lambda *_: setattr(counter, "counting_launches", True))
        block.register_forward_hook(lambda *_: setattr(counter, "counting_launches", False))
        with triton_launches(counter.triton), counter:
            forward()
    return Row(model, backend, exchange, world, rank, dict(counter.counts), counter.peak)


def launches(config: LaunchesConfig) -> list[Row]:
    """Counts all combinations, and writes the JSON and the table."""
    rows = []
    for model, backend, world in itertools.product(config.models, config.backends, config.ranks):
        for exchange in config.exchanges if world > 1 else config.exchanges[:1]:
            rows.append(count_layer(config, model, world, exchange, backend))
            logger.info("%s", as_markdown(rows[-1:])[-1])
    record = [asdict(row) | {"launches": row.launches, "own_bytes": row.own_bytes} for row in rows]
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_record(
        config.output_dir / "launches.json",
        {"config": settings, "versions": versions(), "rows": record},
    )
    table = config.output_dir / "launches.md"
    table.write_text("\n".join(as_markdown(rows)) + "\n")
    logger.info("wrote %s", table)
    return rows


HEADER = (
    "| model | backend | N, rank | exchange | launches | "
    + " | ".join(KINDS)
    + " | LVSA's own, GB | peak, GB |"
)


def as_markdown(rows: Sequence[Row]) -> list[str]:
    """Lines of a table: launches of a layer by kind, and bytes."""
    lines = [HEADER, "|---|---|---|---|" + "--:|" * (len(KINDS) + 3)]
    for row in rows:
        by_kind = [row.counts[kind].launches if kind in row.counts else 0 for kind in KINDS]
        lines.append(
            f"| {row.model} | {row.backend} | {row.ranks}, {row.rank} "
            f"| {row.exchange if row.ranks > 1 else '-'} | {row.launches} | "
            + " | ".join(map(str, by_kind))
            + f" | {row.own_bytes / 1e9:.2f} | {row.peak / 1e9:.2f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: launches(tyro.cli(LaunchesConfig, args=argv))))


if __name__ == "__main__":
    main()
