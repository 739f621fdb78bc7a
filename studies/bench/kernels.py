"""Benchmark of attention kernels: one rank's attention of a layer, sparse against the best dense.

    python studies/bench/kernels.py --models wan-1.3b wan-14b --ranks 1 8

Nothing travels: the blocks of keys that a rank would receive are there. Each sparse backend runs
over them as in a generation, each dense kernel over every key of the video. Times are medians of
calls on inputs that are rotated past the cache.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lvsa.backends import get_backend
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.exchange import get_exchange
from lvsa.exchange.base import KVBlockPlan
from lvsa.hardware import HARDWARE, Hardware
from lvsa.launch.config import DeviceName
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.processes.runtime import pick_device
from lvsa.launch.records.output import versions, write_record
from lvsa.merge import AttentionState
from lvsa.settings import LVSASettings
from lvsa.shards import Shards
from lvsa.studies.bench import dense_kernels
from lvsa.studies.bench.dense_kernels import dense_kernel
from lvsa.studies.bench.models import ModelSize, model_named
from lvsa.studies.bench.processes import device_name
from lvsa.studies.bench.timing import sets_past_the_cache, spread, time_calls

logger = logging.getLogger("lvsa.studies.bench.kernels")


@dataclass(frozen=True)
class KernelsConfig:
    """Attention of one rank and layer, by sparse backends and dense kernels. Lists are combined."""

    models: tuple[str, ...] = ("wan-1.3b", "wan-14b", "hunyuan15")
    """Models, by name: heads, head dimension, tokens per frame."""
    latent_frames: int = 81
    """T: latent frames."""
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """N: ranks that would share the sequence; one of them, in the middle, is measured."""
    backends: tuple[str, ...] = ("triton", "sdpa:flash", "sdpa:cudnn", "flashinfer", "sdpa:fa3")
    """Sparse backends."""
    dense: tuple[str, ...] = dense_kernels.NAMES
    """Dense kernels to compare with."""
    rows_and_columns: tuple[int, int] | None = None
    """Rows and columns of tokens in a frame. Default: the model's own."""
    heads: int | None = None
    """H. Default: the model's own."""
    repeats: int = 5
    """Timed calls of each, after one that is not timed."""
    device: DeviceName = "auto"
    """Kind of device. auto: the accelerator that PyTorch sees, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """dtype of queries, keys and values."""
    output_dir: Path = Path("outputs/kernels")
    """Folder for kernels.json, the table kernels.md and the chart kernels.png."""


@dataclass(frozen=True)
class Work:
    """One rank's attention of a layer, and the dense attention of the same queries."""

    size: ModelSize
    blocks: tuple[KVBlockPlan, ...]
    queries: int
    tokens: int
    dtype: torch.dtype
    device: torch.device

    @property
    def density(self) -> float:
        """Share of the dense attention's pairs that the sparse one has."""
        return sum(block.layout.pairs for block in self.blocks) / (self.queries * self.tokens)

    @property
    def dense_flops(self) -> float:
        """FLOPs of the dense attention."""
        return 4.0 * self.size.head_dim * self.size.heads * self.queries * self.tokens

    def draw(self, *lengths: int) -> list[torch.Tensor]:
        """Random tensors ``[1, length, H, D]``."""
        shape = self.size.heads, self.size.head_dim
        return [torch.randn(1, n, *shape, dtype=self.dtype, device=self.device) for n in lengths]


def work_of(config: KernelsConfig, model: str, world: int, device: torch.device) -> Work:
    """What the rank in the middle has to attend in the first step.

    Raises:
        LVSAError: for an unknown model, or tokens that do not divide among the ranks.
    """
    size = model_named(model)
    if config.rows_and_columns:
        rows, columns = config.rows_and_columns
        size = replace(size, rows=rows, columns=columns)
    size = replace(size, heads=config.heads or size.heads)
    grid = size.grid(config.latent_frames)
    pattern = LVSASettings(rotate_keyframes=True).pattern(
        grid.frames, size.temporal_factor, size.horizon
    )
    shards = Shards(grid, world)
    plan = get_exchange("needed").plan(shards, pattern.attended[0], (world - 1) // 2)
    plan = plan.to(device)
    dtype = getattr(torch, config.dtype)
    return Work(size, plan.blocks, shards.local_tokens, grid.tokens, dtype, device)


def sparse_call(work: Work, backend: str) -> tuple[Callable[[int], object], int]:
    """A call of a sparse backend by the number of its inputs, and how many inputs there are.

    Raises:
        BackendUnavailable: where it does not run here.
    """
    kernel = get_backend(backend, work.device)
    kernel.check(work.device, work.dtype, work.size.head_dim)
    lengths = [work.queries, *(block.tokens for block in work.blocks for _ in "kv")]
    n_sets = _sets(work, lengths)
    sets = [work.draw(*lengths) for _ in range(n_sets)]

    def call(number: int) -> AttentionState | None:
        q, *keys_and_values = sets[number]
        state = None
        for i, block in enumerate(work.blocks):
            k, v = keys_and_values[2 * i : 2 * i + 2]
            more = i + 1 < len(work.blocks)
            state = kernel.attend(q, k, v, block.layout, None, state, more)
        return state

    return call, n_sets


def dense_call(work: Work, name: str) -> tuple[Callable[[int], object], int]:
    """As `sparse_call`, of a dense kernel over the whole video."""
    kernel = dense_kernel(name, work.device, work.dtype, work.size.head_dim)
    lengths = [work.queries, work.tokens, work.tokens]
    n_sets = _sets(work, lengths)
    sets = [work.draw(*lengths) for _ in range(n_sets)]
    return lambda number: kernel(*sets[number]), n_sets


def _sets(work: Work, lengths: Sequence[int]) -> int:
    of_token = work.size.heads * work.size.head_dim * work.dtype.itemsize
    return sets_past_the_cache(sum(lengths) * of_token, work.device)


def measure(
    config: KernelsConfig, model: str, world: int, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of one model and world: each dense kernel, then each sparse backend."""
    work = work_of(config, model, world, device)
    chip = _chip(device)
    rows: list[dict[str, Any]] = []
    best: float | None = None
    for kind, names, make in (
        ("dense", config.dense, dense_call),
        ("sparse", config.backends, sparse_call),
    ):
        for name in names:
            row: dict[str, Any] = {"model": model, "ranks": world, "kind": kind, "kernel": name}
            rows.append(row)
            try:
                call, n_sets = make(work, name)
            except BackendUnavailable as error:
                row["missing"] = str(error)
                logger.info("%s %s: %s", kind, name, error)
                continue
            seconds = spread(time_calls(call, n_sets, config.repeats, device))
            del call  # and with it the inputs, before the next are drawn
            flops = work.dense_flops * (work.density if kind == "sparse" else 1)
            row |= {
                "seconds": seconds,
                "tflops": flops / seconds["median"] / 1e12,
                "share_of_peak": flops / seconds["median"] / chip.flops if chip else None,
            }
            if kind == "dense":
                best = min(best or seconds["median"], seconds["median"])
            elif best is not None:
                speedup = best / seconds["median"]
                row |= {"density": work.density, "speedup": speedup}
                row["speedup_times_density"] = speedup * work.density
            logger.info("%s", as_markdown([row])[-1])
    return rows


def _chip(device: torch.device) -> Hardware | None:
    """The card by its name; None for one whose rate is not known here."""
    name = device_name(device).lower().replace(" ", "")
    return next((hardware for key, hardware in HARDWARE.items() if key in name), None)


def kernels(config: KernelsConfig) -> list[dict[str, Any]]:
    """Measures all combinations, and writes JSON, table and chart.

    Raises:
        LVSAError: for settings that cannot work.
    """
    if config.repeats < 1:
        raise LVSAError(f"--repeats is {config.repeats}; it must be at least 1")
    device = pick_device(config.device, 0)
    todo = [*itertools.product(config.models, config.ranks)]
    for model, world in todo:
        work_of(config, model, world, torch.device("cpu"))
    rows = []
    with logging_redirect_tqdm():
        for model, world in tqdm(todo, desc="cases", unit="case"):
            rows += measure(config, model, world, device)
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_record(
        config.output_dir / "kernels.json",
        {
            "config": settings,
            "device": device_name(device),
            "versions": versions(),
            "rows": rows,
        },
    )
    table = config.output_dir / "kernels.md"
    table.write_text("\n".join(as_markdown(rows)) + "\n")
    draw(rows, config.output_dir / "kernels.png")
    logger.info("wrote %s", table)
    return rows


HEADER = (
    "| model | one rank of | attention | kernel | ms (min – max) | TFLOP/s | of the chip "
    "| speed-up | × density |"
)


def as_markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of the table for docs/benchmarks.md; speed-up is over the fastest dense kernel."""
    lines = [HEADER, "|---|--:|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        head = f"| {row['model']} | {row['ranks']} | {row['kind']} | {row['kernel']} "
        if "missing" in row:
            lines.append(head + "| not here | | | | |")
            continue
        ms = {key: value * 1e3 for key, value in row["seconds"].items()}
        share, speedup = row["share_of_peak"], row.get("speedup")
        lines.append(
            f"{head}| {ms['median']:.4g} ({ms['min']:.4g} – {ms['max']:.4g}) | {row['tflops']:.3g} "
            f"| {'' if share is None else format(share, '.0%')} "
            + (f"| {speedup:.2f} | {row['speedup_times_density']:.2f} |" if speedup else "| | |")
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Saves a PNG: speed-up × density of each sparse backend, 1 where time falls as the work."""
    from matplotlib.figure import Figure

    from lvsa.launch.records.output import written_whole

    bars = [row for row in rows if "speedup_times_density" in row]
    figure = Figure(figsize=(9, 1.2 + 0.35 * max(1, len(bars))), layout="constrained")
    axes = figure.subplots()
    y = range(len(bars))
    axes.barh(y, [row["speedup_times_density"] for row in bars], color="#9ecae1")
    axes.axvline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set_yticks(y, [f"{row['model']}, 1 of {row['ranks']}, {row['kernel']}" for row in bars])
    axes.invert_yaxis()
    axes.set_xlabel("speed-up over the fastest dense kernel × density; higher is better")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: kernels(tyro.cli(KernelsConfig, args=argv))))


if __name__ == "__main__":
    main()
