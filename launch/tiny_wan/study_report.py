"""The quality study's table and plot, from its results."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvsa.errors import LVSAError

logger = logging.getLogger(__name__)

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
ORDER = (
    "drawn clips",
    "dense",
    "published, fixed",
    "published, rotating",
    "even, fixed",
    "even, rotating",
)
MEASURES = {
    "frozen": "frozen pairs",
    "loop": "loop peak",
    "speed": "path, widths in 81 frames",
    "persistence": "object there",
    "colour": "colour",
}

Result = dict[str, Any]


def value(result: Result, measure: str) -> float:
    """A measure of a video; ``speed`` is the path's length for 80 steps from frame to frame."""
    if measure == "speed":
        return float(result["path"]) * 80 / (result["frames"] - 1)
    return float(result[measure])


def write(results: Sequence[Result], docs: Path, horizon: int) -> None:
    """Puts the tables into ``quality.md`` between its marks, and the plot beside it."""
    if not results:
        raise LVSAError("no results yet; run the study first")
    text = "\n\n".join(part for part in (_horizon(results, horizon), _beyond(results, horizon)))
    page = docs / "quality.md"
    old = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise LVSAError(f"{page} lacks the marks {BEGIN} and {END}")
    new = old.split(BEGIN)[0] + f"{BEGIN}\n{text}\n{END}" + old.split(END, 1)[1]
    part = page.with_name(page.name + ".part")
    part.write_text(new, encoding="utf-8")
    os.replace(part, page)
    plot(results, docs / "quality-beyond.png", horizon)


def _horizon(results: Sequence[Result], horizon: int) -> str:
    found = [r for r in results if r["latent_frames"] == horizon and r["variant"] == "dense"]
    if not found:
        return "The horizon was not measured."
    right = sum(r["colour_right"] for r in found)
    moving = sum(r["moves"] for r in found)
    n = len(found)
    means = ", ".join(
        f"{label} {np.mean([value(r, m) for r in found]):.2f}" for m, label in MEASURES.items()
    )
    return (
        f"At the horizon, over {n} videos of held-out captions: colour right in {right} "
        f"({right / n:.0%}), the shape moves in {moving} ({moving / n:.0%}). Means: {means}."
    )


def _beyond(results: Sequence[Result], horizon: int) -> str:
    lengths = sorted({r["latent_frames"] for r in results} - {horizon})
    lines = [
        "| length | attention | videos | " + " | ".join(MEASURES.values()) + " |",
        "|---|---|---|" + "---|" * len(MEASURES),
    ]
    for length in lengths:
        for variant in ORDER:
            found = [r for r in results if r["latent_frames"] == length and r["variant"] == variant]
            if not found:
                continue
            cells = []
            for measure in MEASURES:
                values = [value(r, measure) for r in found]
                cells.append(f"{np.mean(values):.2f} ± {np.std(values):.2f}")
            times = f"{(length - 1) / (horizon - 1):g}×"
            lines.append(f"| {times} | {variant} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path, horizon: int) -> None:
    """One panel a measure: mean over videos against length, bars for the spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(16, 3.4))
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for i, variant in enumerate(ORDER):
            mine = [r for r in results if r["variant"] == variant]
            lengths = sorted({r["latent_frames"] for r in mine})
            if not lengths:
                continue
            groups = [
                [value(r, measure) for r in mine if r["latent_frames"] == length]
                for length in lengths
            ]
            axis.errorbar(
                # A little apart, so that bars do not hide one another.
                [(n - 1) / (horizon - 1) + 0.06 * (i - 2.5) for n in lengths],
                [np.mean(group) for group in groups],
                yerr=[np.std(group) for group in groups],
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
                linestyle="--" if variant == "drawn clips" else "-",
                label=variant,
            )
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("length / training horizon")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=6, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    figure.savefig(part, dpi=110)
    pyplot.close(figure)
    os.replace(part, path)
