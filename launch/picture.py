"""A picture of the attention pattern that needs no explanation."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvsa.launch.records.output import written_whole
from lvsa.pattern import Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Light to strong: nothing, window, keyframe, fixed anchor.
COLORS = ["#f4f4f2", "#9ecae1", "#e6862d", "#7a3b8f"]
MOST_PIXELS = 1000
MOST_BORDERS = 64
NAMES = ["not attended", "local window", "keyframe of this step", "first or conditioning frame"]


def draw_pattern(
    pattern: Pattern, path: Path, *, world: int = 1, steps: int = 20, title: str = ""
) -> None:
    """Saves the frame matrix at step 0 beside the anchors of every step.

    Args:
        pattern: what to draw.
        path: of the PNG; written whole or not at all.
        world: ranks; their borders are drawn where there is more than one.
        steps: denoising steps to show.
        title: of the figure.
    """
    # Half a second that only pictures cost. A figure without pyplot needs no display.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    T = pattern.frames
    shown = min(steps, 24) if pattern.n_offsets > 1 else 1
    figure = Figure(figsize=(13, 7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    kinds = np.zeros((T, T), dtype=np.uint8)
    kinds[pattern.attended[0]] = 1
    kinds[:, pattern.anchors[0]] = 2
    kinds[:, list(pattern.fixed_anchors)] = 3
    _matrix(left, kinds, f"step 0: density {pattern.attended[0].mean():.2f}")
    left.set_ylabel("query frame (latent)")
    rows = np.zeros((shown, T), dtype=np.uint8)
    for step in range(shown):
        rows[step, pattern.anchors[pattern.offset(step)]] = 2
    rows[:, list(pattern.fixed_anchors)] = 3
    moving = pattern.n_offsets > 1
    _matrix(right, rows, "anchors at each denoising step" if moving else "anchors at every step")
    right.set_ylabel("denoising step" if moving else "")
    right.set_yticks(range(0, shown, max(1, shown // 12)) if moving else [])
    for axes in (left, right):
        axes.set_xlabel("key frame (latent)")
    # More borders than that are a surface.
    world = world if world <= MOST_BORDERS else 1
    for rank in range(1, world):
        border = rank * T / world - 0.5
        left.axhline(border, color="#c1272d", linewidth=1, linestyle="--")
        for axes in (left, right):
            axes.axvline(border, color="#c1272d", linewidth=1, linestyle="--")
    if world > 1:
        for rank in range(world):
            left.text(
                T + 0.2,
                (rank + 0.5) * T / world - 0.5,
                f"rank {rank}",
                va="center",
                color="#c1272d",
                fontsize=8,
            )
    key = [
        Patch(facecolor=c, edgecolor="#888888", label=n) for c, n in zip(COLORS, NAMES, strict=True)
    ]
    if world > 1:
        key.append(
            Patch(facecolor="none", edgecolor="#c1272d", linestyle="--", label="rank border")
        )
    figure.legend(handles=key, loc="outside lower center", ncols=len(key), frameon=False)
    figure.suptitle(title or f"{T} latent frames, {pattern.frames_attended.max()} attended")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _matrix(axes: "Axes", kinds: np.ndarray, title: str) -> None:
    """Draws kinds ``[rows, columns]`` of frames, the strongest one of those that share a pixel."""
    from matplotlib.colors import ListedColormap

    rows, columns = kinds.shape
    tall, wide = -(-rows // MOST_PIXELS), -(-columns // MOST_PIXELS)
    padded = np.pad(kinds, ((0, -rows % tall), (0, -columns % wide)))
    blocks = padded.reshape(len(padded) // tall, tall, -1, wide)
    axes.imshow(
        blocks.max((1, 3)),
        cmap=ListedColormap(COLORS),
        vmin=0,
        vmax=len(COLORS) - 1,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, padded.shape[1] - 0.5, len(padded) - 0.5, -0.5),
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_title(title)
