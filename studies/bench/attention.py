"""Attention, dense against sparse, in one run: seconds, spread and what the exchange moved.

    python studies/bench/attention.py --frames 41 81 --ranks 1 2 --exchanges needed all_gather

Dense and sparse calls take turns, so that what slows the machine down slows both; compare their
ratio with the density, not seconds of different runs.
"""

import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import distributed as dist
from torch import multiprocessing as mp
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lvsa.attention import LVSAttention
from lvsa.errors import DivisibilityError, LVSAError
from lvsa.keyframes import PLACEMENTS, Placement
from lvsa.launch.config import ExchangeName
from lvsa.launch.job import DTYPES
from lvsa.launch.output import versions, write_record, written_whole
from lvsa.launch.runtime import pick_device, run_reporting, set_up_logging
from lvsa.pattern import dense
from lvsa.shards import FrameGrid, Shards

logger = logging.getLogger("lvsa.studies.bench.attention")


@dataclass(frozen=True)
class BenchConfig:
    """Attention of one layer, dense against LVSA. Lists are combined, each with each."""

    frames: tuple[int, ...] = (41, 81)
    """T: latent frames."""
    tokens: tuple[int, ...] = (240,)
    """P: tokens per latent frame."""
    heads: tuple[int, ...] = (2,)
    """H: attention heads."""
    head_dims: tuple[int, ...] = (64,)
    """D: channels of a head."""
    ranks: tuple[int, ...] = (1, 2)
    """N: processes on this machine that share the sequence."""
    exchanges: tuple[ExchangeName, ...] = ("needed", "ring", "all_gather")
    """KV exchanges; one process needs none."""
    horizon: int = 21
    """Training horizon in latent frames, which sets the keyframe interval."""
    keyframe_placement: Placement = "published"
    """How keyframes are spread."""
    repeats: int = 5
    """Timed calls of each kind, after one that is not timed."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where to run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of queries, keys and values."""
    backend: str = "sdpa"
    """Attention kernel."""
    output_dir: Path = Path("outputs/bench")
    """Folder for bench.json and bench.png."""


@dataclass(frozen=True)
class Case:
    """One combination."""

    frames: int
    tokens: int
    heads: int
    head_dim: int
    ranks: int
    exchange: str


def cases(config: BenchConfig) -> list[Case]:
    """All combinations; one process is measured once, since it exchanges nothing.

    Raises:
        DivisibilityError: for a combination whose tokens do not divide among its ranks.
    """
    found = []
    for T, P, H, D, N in itertools.product(
        config.frames, config.tokens, config.heads, config.head_dims, config.ranks
    ):
        Shards(FrameGrid(T, 1, P), N)
        for exchange in config.exchanges if N > 1 else ("none",):
            found.append(Case(T, P, H, D, N, exchange))
    return found


def measure(case: Case, config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Seconds of this rank for dense and sparse calls in turn."""
    group = dist.group.WORLD if case.ranks > 1 else None
    grid = FrameGrid(case.frames, 1, case.tokens)
    sparse = PLACEMENTS[config.keyframe_placement](case.frames, horizon=config.horizon, rotate=True)
    exchange = case.exchange if case.ranks > 1 else "needed"
    engines = {
        name: LVSAttention(pattern, grid, group=group, exchange=exchange, backend=config.backend)
        for name, pattern in (("dense", dense(case.frames)), ("sparse", sparse))
    }
    L = engines["dense"].local_tokens
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, L, case.heads, case.head_dim, generator=generator).to(
            device, DTYPES[config.dtype]
        )
        for _ in range(3)
    )
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    received = {}
    for turn in range(config.repeats + 1):
        for name, engine in engines.items():
            engine.step = turn
            before = engine.received.kv_bytes
            _settle(device, group)
            began = time.perf_counter()
            engine(q, k, v)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
            received[name] = engine.received.kv_bytes - before
    return {"seconds": seconds, "received_bytes": received, "density": sparse.density}


def _settle(device: torch.device, group: Any) -> None:
    """All ranks begin together, with nothing left on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if group is not None:
        dist.barrier(group)


def summary(case: Case, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the results: the slowest rank of each call counts."""
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
    # 1.0: time fell exactly as the work did. Above: overhead of tiling and exchange.
    row["ratio_over_density"] = round(row["ratio_median"] / density, 4)
    return row


def run_case(case: Case, config: BenchConfig) -> dict[str, Any]:
    """Measures a case, in processes of its own where it has several ranks."""
    if case.ranks == 1:
        return summary(case, [measure(case, config, pick_device(config.device, 0))])
    with tempfile.TemporaryDirectory() as folder:
        # A server that has imported everything once forks ranks at once, before any CUDA.
        mp.set_forkserver_preload(["lvsa.studies.bench.attention"])
        mp.start_processes(
            _rank, args=(case, config, folder), nprocs=case.ranks, start_method="forkserver"
        )
        ranks = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(case.ranks)
        ]
    return summary(case, ranks)


def _rank(rank: int, case: Case, config: BenchConfig, folder: str) -> None:
    device = pick_device(config.device, rank)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // case.ranks))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=case.ranks,
        timeout=timedelta(minutes=10),
    )
    torch.save(measure(case, config, device), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Sparse over dense time of every case, beside the density that bounds it from below."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    y = np.arange(len(rows))
    ratio = np.array([row["ratio_median"] for row in rows])
    spread = [
        [row["ratio_median"] - row["ratio_min"] for row in rows],
        [row["ratio_max"] - row["ratio_median"] for row in rows],
    ]
    axes.barh(y, ratio, xerr=spread, color="#9ecae1", capsize=3, label="time, sparse / dense")
    axes.scatter([row["density"] for row in rows], y, color="#7a3b8f", zorder=3, label="density")
    axes.axvline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set_yticks(
        y,
        [
            f"T={r['frames']} P={r['tokens']} H={r['heads']} D={r['head_dim']} N={r['ranks']}"
            + (f" {r['exchange']}" if r["ranks"] > 1 else "")
            for r in rows
        ],
    )
    axes.invert_yaxis()
    axes.set_xlabel("lower is better; 1 is the time of dense attention on the same ranks")
    axes.legend(loc="lower right")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def bench(config: BenchConfig) -> list[dict[str, Any]]:
    """Measures all cases and writes bench.json and bench.png."""
    if config.repeats < 1:
        raise LVSAError(f"--repeats is {config.repeats}; it must be at least 1")
    # Every rank has a device, or none starts.
    pick_device(config.device, max(config.ranks) - 1)
    try:
        todo = cases(config)
    except DivisibilityError as error:
        raise LVSAError(f"a combination of --frames, --tokens and --ranks: {error}") from error
    rows = []
    with logging_redirect_tqdm():
        for case in tqdm(todo, desc="cases", unit="case"):
            rows.append(run_case(case, config))
            row = rows[-1]
            logger.info(
                "T=%d P=%d H=%d D=%d N=%d %s: dense %.4f s, sparse %.4f s; ratio %.3f "
                "(%.3f-%.3f), density %.3f, ratio/density %.2f",
                case.frames, case.tokens, case.heads, case.head_dim, case.ranks, case.exchange,
                row["dense_median"], row["sparse_median"], row["ratio_median"], row["ratio_min"],
                row["ratio_max"], row["density"], row["ratio_over_density"],
            )  # fmt: skip
    device = pick_device(config.device, 0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_record(
        config.output_dir / "bench.json",
        {"config": settings, "device": name, "threads": torch.get_num_threads(),
         "versions": versions(), "cases": rows},
    )  # fmt: skip
    draw(rows, config.output_dir / "bench.png")
    logger.info("wrote %s and bench.png", config.output_dir / "bench.json")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    set_up_logging(0)
    sys.exit(run_reporting(lambda: bench(tyro.cli(BenchConfig, args=argv))))


if __name__ == "__main__":
    main()
