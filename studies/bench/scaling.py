"""A denoising step of a published model on many GPUs, on paper: LVSA against dense attention.

    python studies/bench/scaling.py --models wan-14b --latent-frames 81 161 --ranks 8 64 512

Predictions by `lvsa.cost`, nothing is measured. For each size the fastest mesh is taken, of dense
attention as well; "USP" is dense attention by heads and a ring alone, both passes of guidance on
all GPUs. Where tokens do not divide among the GPUs, the video of the nearest length is taken.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import tyro

from lvsa.cost import StepCost, Work, best, costs
from lvsa.cp_plans import plan_for
from lvsa.errors import LVSAError
from lvsa.hardware import Hardware, find_hardware
from lvsa.keyframes import published
from lvsa.launch.meshes.ranking import described
from lvsa.launch.meshes.work import work_of
from lvsa.launch.processes.reporting import run_reporting
from lvsa.mesh import PASSES, possible
from lvsa.pattern import Pattern, dense
from lvsa.shards import FrameGrid, nearest_frames
from lvsa.studies.bench.models import MODELS, model_named

logger = logging.getLogger("lvsa.studies.bench.scaling")


@dataclass(frozen=True)
class ScalingConfig:
    """A step on many GPUs, on paper. Lists are combined, each with each."""

    models: tuple[str, ...] = ("wan-14b",)
    """Published models: wan-1.3b, wan-14b, hunyuan15, cogvideox-5b."""
    rows: int = 45
    """Rows of tokens in a latent frame; 45 × 80 is 720p for Wan."""
    columns: int = 80
    """Columns of tokens in a latent frame."""
    latent_frames: tuple[int, ...] = (81, 161)
    """T: latent frames."""
    ranks: tuple[int, ...] = (8, 64, 512)
    """GPUs."""
    hardware: str = "h100"
    """Of every rank: a name, or a TOML file."""
    backend: str = "triton"
    """Attention kernel, the same for both."""


@dataclass(frozen=True)
class Row:
    """The fastest ways to make a step of one video on so many GPUs."""

    model: str
    frames: int
    ranks: int
    lvsa: StepCost
    dense: StepCost
    usp: StepCost

    def __str__(self) -> str:
        return (
            f"| {self.model} | {self.frames} | {self.ranks} | {described(self.lvsa)} | "
            f"{self.lvsa.seconds:.3g} | {described(self.dense)} | {self.dense.seconds:.3g} | "
            f"{described(self.usp)} | {self.usp.seconds:.3g} | "
            f"{self.usp.seconds / self.lvsa.seconds:.1f}× |"
        )


HEAD = (
    "| model | video frames | GPUs | LVSA on | s a step | dense on | s a step | USP on | s a step "
    "| USP / LVSA |\n|---|--:|--:|---|--:|---|--:|---|--:|--:|"
)


@cache
def counted(model: str) -> Work:
    """What a published model does in a step with guidance."""
    size = model_named(model)
    transformer = size.build(size.layers, torch.float32)
    return work_of(
        transformer,
        plan_for(transformer),
        size.grid(1),
        layers=size.layers,
        dtype=torch.bfloat16,
        passes=PASSES,
    )


def row(model: str, T: int, ranks: int, config: ScalingConfig, hardware: Hardware) -> Row:
    """The fastest meshes of a video of T latent frames, or as many as are near and divide."""
    size = MODELS[model]
    grid = FrameGrid(T, config.rows, config.columns, temporal_factor=size.temporal_factor)
    T = min(nearest_frames(grid, ranks), key=lambda near: abs(near - T))
    grid = FrameGrid(T, config.rows, config.columns, temporal_factor=size.temporal_factor)

    def fastest(pattern: Pattern, guidance: bool | None = None) -> StepCost:
        meshes = possible(ranks, grid, size.heads, passes=PASSES, guidance=guidance)
        found = costs(counted(model), grid, pattern.attended[0], meshes, hardware, config.backend)
        if not found:
            raise LVSAError(f"there is no model of the backend {config.backend!r}")
        return best(found)

    sparse = published(T, horizon=size.horizon, rotate=True)
    whole = dense(T)
    return Row(
        model,
        grid.video_frames(T),
        ranks,
        fastest(sparse),
        fastest(whole),
        fastest(whole, guidance=False),
    )


def scaling(config: ScalingConfig) -> list[Row]:
    """Rows of the table, each said as it is found."""
    hardware, rows = find_hardware(config.hardware), []
    logger.info("%s, predicted, not measured\n%s", hardware.name, HEAD)
    for model in config.models:
        for T in config.latent_frames:
            for ranks in config.ranks:
                rows.append(row(model, T, ranks, config, hardware))
                logger.info("%s", rows[-1])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: scaling(tyro.cli(ScalingConfig, args=argv))))


if __name__ == "__main__":
    main()
