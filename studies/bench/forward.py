"""Benchmark of whole forwards of Wan with random weights: the stock model against LVSA on it.

    python studies/bench/forward.py --model wan-1.3b --latent-frames 126

Three kinds take turns: the stock model, LVSA, and a model whose attention over video hands its
values on. The third says how much of a forward is no attention, and so how far sparsity can go.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from lvsa.adapters import get_adapter
from lvsa.attention import LVSAttention
from lvsa.cp_plans import plan_for
from lvsa.errors import LVSAError
from lvsa.launch.config import DeviceName
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.processes.runtime import pick_device
from lvsa.launch.records.output import versions, write_record
from lvsa.processor import LVSAProcessor
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid
from lvsa.studies.bench.models import ModelSize, model_named
from lvsa.studies.bench.processes import device_name
from lvsa.studies.bench.timing import timed

logger = logging.getLogger("lvsa.studies.bench.forward")
KINDS = ("dense", "sparse", "without attention")


@dataclass(frozen=True)
class ForwardConfig:
    """Whole forwards of Wan with random weights, dense, sparse and without attention, in turn."""

    model: str = "wan-1.3b"
    """Model, by name: wan-1.3b or wan-14b."""
    layers: int | None = None
    """Transformer blocks. Default: the model's own."""
    heads: int | None = None
    """Attention heads. Default: the model's own."""
    head_dim: int | None = None
    """Channels of a head. Default: the model's own."""
    ffn_dim: int | None = None
    """Channels inside the feed-forward layers. Default: the model's own."""
    latent_frames: int = 126
    """T: latent frames; six times the training horizon."""
    rows_and_columns: tuple[int, int] | None = None
    """Rows and columns of tokens in a frame. Default: the model's own, 480 × 832 pixels."""
    steps: int = 3
    """Timed forwards of each kind, after one that is not timed; keyframes move each step."""
    backend: str = "auto"
    """Attention kernel of LVSA."""
    device: DeviceName = "auto"
    """Kind of device. auto: the accelerator that PyTorch sees, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """dtype of weights and activations."""
    output_dir: Path = Path("outputs/forward")
    """Folder for forward.json."""


class NoAttention:
    """In place of the engine: values go on as they came."""

    rank, world = 0, 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, text: Any = None) -> tuple[Tensor, None]:
        return v, None


def size_of(config: ForwardConfig) -> ModelSize:
    """The model of a configuration.

    Raises:
        LVSAError: for one that is no Wan, or fewer than one step.
    """
    if config.steps < 1:
        raise LVSAError(f"--steps is {config.steps}; it must be at least 1")
    size = model_named(config.model)
    if size.adapter != "wan":
        raise LVSAError(f"--model is {config.model!r}; allowed: wan-1.3b, wan-14b")
    rows, columns = config.rows_and_columns or (size.rows, size.columns)
    heads, head_dim = config.heads or size.heads, config.head_dim or size.head_dim
    entries = {"num_attention_heads": heads, "attention_head_dim": head_dim}
    if config.ffn_dim is not None:
        entries["ffn_dim"] = config.ffn_dim
    return replace(
        size,
        rows=rows,
        columns=columns,
        heads=heads,
        head_dim=head_dim,
        layers=config.layers or size.layers,
        config={**size.config, **entries},
    )


def inputs_of(transformer: nn.Module, grid: FrameGrid, dtype: torch.dtype, device: Any) -> Any:
    """Random arguments for a forward."""
    return {
        name: torch.randn(x.shape, device=device).to(dtype if x.is_floating_point() else x.dtype)
        for name, x in plan_for(transformer).inputs(transformer, grid).items()
        if x is not None
    }


def measure(config: ForwardConfig, device: torch.device) -> dict[str, Any]:
    """Seconds of forwards of each kind, in turn, and what follows from them."""
    size, dtype = size_of(config), getattr(torch, config.dtype)
    grid = size.grid(config.latent_frames)
    pattern = LVSASettings(rotate_keyframes=True).pattern(
        grid.frames, size.temporal_factor, size.horizon
    )
    transformer: Any = size.build(size.layers, dtype, device)
    adapter = get_adapter(size.adapter)
    pipe = SimpleNamespace(transformer=transformer, config=SimpleNamespace())
    stock = {module: module.processor for _, module in adapter.attention_modules(transformer)}
    engine = LVSAttention(pattern, grid, backend=config.backend, device=device)
    nothing: Any = NoAttention()

    def restore() -> None:
        for module, processor in stock.items():
            module.set_processor(processor)

    install: dict[str, Callable[[], object]] = {
        "dense": restore,
        "sparse": lambda: adapter.install_processor(pipe, LVSAProcessor(adapter, engine)),
        "without attention": lambda: adapter.install_processor(
            pipe, LVSAProcessor(adapter, nothing)
        ),
    }
    inputs = inputs_of(transformer, grid, dtype, device)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(config.steps + 1):
        engine.step = turn
        for kind in KINDS:
            install[kind]()
            spent: list[float] = []
            with timed(spent, device), torch.no_grad():
                transformer(**inputs, return_dict=False)
            if turn:
                seconds[kind] += spent
    return {"density": pattern.density, "seconds": seconds} | summary(seconds)


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Ratios of the kinds: medians of the turns."""
    turns = [*zip(*(seconds[kind] for kind in KINDS), strict=True)]
    return {
        "ratio": median(sparse / dense for dense, sparse, _ in turns),
        "speedup": median(dense / sparse for dense, sparse, _ in turns),
        "attention_ratio": median((s - rest) / (d - rest) for d, s, rest in turns),
        "share_without_attention": median(rest / dense for dense, _, rest in turns),
    }


def forward(config: ForwardConfig) -> dict[str, Any]:
    """Measures, and writes forward.json.

    Raises:
        LVSAError: for settings that cannot work.
    """
    size_of(config)
    device = pick_device(config.device, 0)
    found = measure(config, device)
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(config).items()}
    write_record(
        config.output_dir / "forward.json",
        {
            "config": settings,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            **found,
        },
    )
    medians = {kind: median(values) for kind, values in found["seconds"].items()}
    logger.info(
        "dense %.4g s, sparse %.4g s, without attention %.4g s; ratio %.3f (%.2f× as fast), "
        "density %.3f; attention alone %.3f; not attention: %.1f %% of the dense forward",
        *medians.values(),
        *(found[key] for key in ("ratio", "speedup", "density", "attention_ratio")),
        100 * found["share_without_attention"],
    )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: forward(tyro.cli(ForwardConfig, args=argv))))


if __name__ == "__main__":
    main()
