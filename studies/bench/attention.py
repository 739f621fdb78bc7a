"""Benchmark of one layer's attention, dense against sparse: seconds and bytes received.

    python studies/bench/attention.py --latent-frames 41 81 --ranks 1 2 --exchanges needed

Dense and sparse calls take turns, so that what slows the machine down slows both; compare their
ratio with the density, not seconds of different runs.
"""

import itertools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lvsa.attention import LVSAttention
from lvsa.errors import DivisibilityError, LVSAError
from lvsa.keyframes import PLACEMENTS, Placement
from lvsa.launch.config import DeviceName, ExchangeName
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.processes.runtime import pick_device
from lvsa.launch.records.output import versions, write_record
from lvsa.mesh import MeshSizes, VideoMesh
from lvsa.pattern import dense
from lvsa.shards import FrameGrid, Shards
from lvsa.studies.bench import chart
from lvsa.studies.bench.processes import device_name, run_ranks, settle, synchronize

logger = logging.getLogger("lvsa.studies.bench.attention")


@dataclass(frozen=True)
class BenchConfig:
    """Attention of one layer, dense against LVSA. Lists are combined, each with each."""

    latent_frames: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--frames"])] = (41, 81)
    """T: latent frames."""
    tokens_per_frame: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--tokens"])] = (240,)
    """P: tokens per latent frame."""
    heads: tuple[int, ...] = (2,)
    """H: attention heads."""
    head_dims: tuple[int, ...] = (64,)
    """D: channels of a head."""
    ranks: tuple[int, ...] = (1, 2)
    """N: processes on this machine that share the sequence."""
    ulysses: tuple[int, ...] = (1, 2)
    """U: of the N ranks, those that exchange tokens for heads; the rest is frames."""
    exchanges: tuple[ExchangeName, ...] = ("needed", "ring", "all_gather")
    """How keys and values travel; a mesh of one rank of frames needs no exchange."""
    horizon: int = 21
    """Training horizon in latent frames, which sets the keyframe interval."""
    keyframe_placement: Placement = "published"
    """How keyframes are spread."""
    repeats: int = 5
    """Timed calls of each kind, after one that is not timed."""
    device: DeviceName = "auto"
    """Kind of device. auto: the accelerator that PyTorch sees, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype of queries, keys and values."""
    backend: str = "sdpa"
    """Attention kernel."""
    output_dir: Path = Path("outputs/bench")
    """Folder for bench.json and bench.png."""


@dataclass(frozen=True)
class Case:
    """A combination of what is varied; ``exchange`` is "none" where no frames travel."""

    latent_frames: int
    tokens_per_frame: int
    heads: int
    head_dim: int
    ranks: int
    ulysses: int
    exchange: str

    @property
    def mesh(self) -> MeshSizes:
        """The ranks by what they share."""
        return MeshSizes(frames=self.ranks // self.ulysses, heads=self.ulysses)


def cases(config: BenchConfig) -> list[Case]:
    """All combinations that can be: U divides ranks and heads. What exchanges no frames is measured
    once.

    Raises:
        DivisibilityError: for a combination whose tokens do not divide among its ranks.
    """
    found = []
    for T, P, H, D, N, U in itertools.product(
        config.latent_frames,
        config.tokens_per_frame,
        config.heads,
        config.head_dims,
        config.ranks,
        config.ulysses,
    ):
        Shards(FrameGrid(T, 1, P), N)
        if N % U or H % U:
            continue
        for exchange in config.exchanges if N > U else ("none",):
            found.append(Case(T, P, H, D, N, U, exchange))
    return found


def measure(case: Case, config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Measurements of this rank: dense and sparse calls in turn.

    Returns:
        seconds: of the timed calls, for "dense" and "sparse".
        received_bytes: of one call, for both: keys and values, and tokens exchanged for heads.
        density: share of the attention that the sparse calls compute.
    """
    mesh = VideoMesh.of(case.mesh.device_mesh(device.type))
    T = case.latent_frames
    grid = FrameGrid(T, 1, case.tokens_per_frame)
    sparse = PLACEMENTS[config.keyframe_placement](T, horizon=config.horizon, rotate=True)
    engines = {
        name: LVSAttention(
            pattern,
            grid,
            group=mesh.frames,
            heads=mesh.heads,
            exchange="needed" if case.exchange == "none" else case.exchange,
            backend=config.backend,
            device=device,
        )
        for name, pattern in (("dense", dense(T)), ("sparse", sparse))
    }
    L = engines["dense"].local_tokens
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, config.dtype)
    q, k, v = (
        torch.randn(1, L, case.heads, case.head_dim, generator=generator).to(device, dtype)
        for _ in range(3)
    )
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    received = {}
    for turn in range(config.repeats + 1):
        for name, engine in engines.items():
            engine.step = turn
            before = engine.received.kv_bytes + engine.received.head_bytes
            settle(device, mesh.video)
            began = time.perf_counter()
            engine(q, k, v)
            synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
            received[name] = engine.received.kv_bytes + engine.received.head_bytes - before
    return {"seconds": seconds, "received_bytes": received, "density": sparse.density}


def summary(case: Case, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Row of the results: for each call the time of its slowest rank.

    Args:
        case: that was measured.
        ranks: from `measure`, of every rank.
    """
    row: dict[str, Any] = asdict(case)
    density = ranks[0]["density"]
    for name in ("dense", "sparse"):
        slowest = np.max([rank["seconds"][name] for rank in ranks], axis=0)
        row[f"{name}_seconds"] = [round(float(s), 6) for s in slowest]
        row[f"{name}_median"] = round(median(slowest.tolist()), 6)
        row[f"{name}_received_bytes_max"] = max(rank["received_bytes"][name] for rank in ranks)
    pairs = [s / d for s, d in zip(row["sparse_seconds"], row["dense_seconds"], strict=True)]
    row["density"] = round(density, 5)
    row["ratio_median"] = round(median(pairs), 5)
    row["ratio_min"], row["ratio_max"] = round(min(pairs), 5), round(max(pairs), 5)
    # 1: time falls exactly as the work does. Above: the cost of tiles and of the exchange.
    row["ratio_over_density"] = round(row["ratio_median"] / density, 4)
    return row


def bench(config: BenchConfig) -> list[dict[str, Any]]:
    """Measures all cases and writes bench.json and bench.png.

    Returns:
        Rows of the results, from `summary`.

    Raises:
        LVSAError: for settings that cannot work, before anything is measured.
    """
    if config.repeats < 1:
        raise LVSAError(f"--repeats is {config.repeats}; it must be at least 1")
    # Every rank has a device, or none starts.
    pick_device(config.device, max(config.ranks) - 1)
    try:
        todo = cases(config)
    except DivisibilityError as error:
        raise LVSAError(
            f"a combination of --latent-frames, --tokens-per-frame and --ranks: {error}"
        ) from error
    rows = []
    with logging_redirect_tqdm():
        for case in tqdm(todo, desc="cases", unit="case"):
            rows.append(summary(case, run_ranks(case.ranks, config.device, measure, case, config)))
            logger.info("%s", as_text(rows[-1]))
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_record(
        config.output_dir / "bench.json",
        {
            "config": settings,
            "device": device_name(pick_device(config.device, 0)),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "cases": rows,
        },
    )
    chart.draw(rows, config.output_dir / "bench.png")
    logger.info("wrote %s and bench.png", config.output_dir / "bench.json")
    return rows


def as_text(row: dict[str, Any]) -> str:
    """Text of a row of the results."""
    return (
        "T={latent_frames} P={tokens_per_frame} H={heads} D={head_dim} N={ranks} U={ulysses} "
        "{exchange}: "
        "dense {dense_median:.4f} s, sparse {sparse_median:.4f} s; ratio {ratio_median:.3f} "
        "({ratio_min:.3f}-{ratio_max:.3f}), density {density:.3f}, ratio/density "
        "{ratio_over_density:.2f}"
    ).format(**row)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: bench(tyro.cli(BenchConfig, args=argv))))


if __name__ == "__main__":
    main()
