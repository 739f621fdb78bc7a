"""The quality study's table and plot, from its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvsa.errors import LVSAError
from lvsa.launch.output import written_whole

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
    "shape": "shape",
    "motion_right": "motion right",
}

HELD = {
    "colour_right": "colour right",
    "moves": "the shape moves",
    "shape_right": "shape right",
    "motion_right": "motion right",
}
"""What holds or does not for a video, counted at the horizon."""

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
    with written_whole(page) as part:
        part.write_text(new, encoding="utf-8")
    plot(results, docs / "quality-beyond.png", horizon)


def _horizon(results: Sequence[Result], horizon: int) -> str:
    found = [r for r in results if r["latent_frames"] == horizon and r["variant"] == "dense"]
    if not found:
        return "The horizon was not measured."
    n = len(found)
    counts = ", ".join(
        f"{label} in {sum(r[key] for r in found)} ({sum(r[key] for r in found) / n:.0%})"
        for key, label in HELD.items()
    )
    means = ", ".join(
        f"{label} {np.mean([value(r, m) for r in found]):.2f}" for m, label in MEASURES.items()
    )
    return f"At the horizon, over {n} videos of held-out captions: {counts}. Means: {means}."


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

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(20, 3.4))
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
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)
