"""Report of the quality study: its table and plot, from the results alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvsa.errors import LVSAError
from lvsa.launch.records.output import written_whole

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Marks in ``quality.md`` between which the results stand."""
DRAWN = "drawn clips"
"""Variant that is not generated, but drawn as the training data is."""
ORDER = (
    DRAWN,
    "dense",
    "published, fixed",
    "published, rotating",
    "even, fixed",
    "even, rotating",
)
MEASURES = {
    "frozen": "frozen pairs",
    "loop": "loop peak",
    "drift_loop": "loop peak, drifts only",
    "path_81": "path, widths in 81 frames",
    "persistence": "object there",
    "color": "color",
    "shape": "shape",
    "motion_right": "motion right",
}
"""Columns of the table and panels of the plot: measure and label."""
COUNTED = {
    "color_right": "color right",
    "moves": "the shape moves",
    "shape_right": "shape right",
    "motion_right": "motion right",
}
"""Properties that a video has or lacks, counted at the horizon."""

Result = dict[str, Any]


def values(results: Sequence[Result], measure: str) -> list[float]:
    """Values of a measure for the videos to which it applies.

    ``path_81`` is the path's length in 81 frames, which are 80 steps; ``drift_loop`` the loop peak
    of videos whose caption asks for a drift, which repeats nothing.
    """
    if measure == "path_81":
        return [float(r["path"]) * 80 / (r["frames"] - 1) for r in results]
    if measure == "drift_loop":
        return [float(r["loop"]) for r in results if " drifts " in r["caption"]]
    return [float(r[measure]) for r in results]


def spread(found: Sequence[float]) -> str:
    """Mean ± standard deviation as text."""
    return f"{np.mean(found):.2f} ± {np.std(found):.2f}" if found else "–"


def write(results: Sequence[Result], docs: Path, horizon: int) -> None:
    """Puts the results into ``quality.md`` between its marks, and the plot beside it.

    Args:
        results: of the study, a video each.
        docs: folder of the page.
        horizon: latent frames that the model was trained on.

    Raises:
        LVSAError: for no results, or a page without the marks.
    """
    if not results:
        raise LVSAError("no results yet; run the study first")
    text = f"{_at_horizon(results, horizon)}\n\n{_beyond(results, horizon)}"
    page = docs / "quality.md"
    old = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        raise LVSAError(f"{page} lacks the marks {BEGIN} and {END}")
    new = old.split(BEGIN)[0] + f"{BEGIN}\n{text}\n{END}" + old.split(END, 1)[1]
    with written_whole(page) as part:
        part.write_text(new, encoding="utf-8")
    plot(results, docs / "quality-beyond.png", horizon)


def _at_horizon(results: Sequence[Result], horizon: int) -> str:
    """Counts and means of dense attention at the horizon, in a paragraph."""
    found = [r for r in results if r["latent_frames"] == horizon and r["variant"] == "dense"]
    if not found:
        return "The horizon was not measured."
    n = len(found)
    counts = ", ".join(
        f"{label} in {sum(r[key] for r in found)} ({sum(r[key] for r in found) / n:.0%})"
        for key, label in COUNTED.items()
    )
    means = ", ".join(
        f"{label} {spread(values(found, measure))}"
        for measure, label in MEASURES.items()
        if measure not in COUNTED
    )
    return f"At the horizon, over {n} videos of held-out captions: {counts}. Means: {means}."


def _beyond(results: Sequence[Result], horizon: int) -> str:
    """Table of all other lengths, a row for each length and kind of attention."""
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
            cells = [spread(values(found, measure)) for measure in MEASURES]
            times = f"{(length - 1) / (horizon - 1):g}×"
            lines.append(f"| {times} | {variant} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[Result], path: Path, horizon: int) -> None:
    """Draws a panel for each measure: mean over videos against length, with standard deviation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(MEASURES) // 2, figsize=(14, 6.4))
    for axis, (measure, label) in zip(axes.flat, MEASURES.items(), strict=True):
        for i, variant in enumerate(ORDER):
            mine = [r for r in results if r["variant"] == variant]
            groups = {
                length: found
                for length in sorted({r["latent_frames"] for r in mine})
                if (found := values([r for r in mine if r["latent_frames"] == length], measure))
            }
            if not groups:
                continue
            axis.errorbar(
                # A little apart, so that bars do not hide one another.
                [(n - 1) / (horizon - 1) + 0.06 * (i - 2.5) for n in groups],
                [np.mean(found) for found in groups.values()],
                yerr=[np.std(found) for found in groups.values()],
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
                linestyle="--" if variant == DRAWN else "-",
                label=variant,
            )
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("length / training horizon")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=6, frameon=False
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)
