"""Chart of the attention benchmark: time of sparse over dense attention, beside the density."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvsa.launch.records.output import written_whole


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Saves a PNG with a bar for each case, from its least to its greatest ratio a whisker.

    Args:
        rows: from `attention.summary`.
        path: of the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    y = range(len(rows))
    spread = [
        [row["ratio_median"] - row["ratio_min"] for row in rows],
        [row["ratio_max"] - row["ratio_median"] for row in rows],
    ]
    axes.barh(
        y,
        [row["ratio_median"] for row in rows],
        xerr=spread,
        color="#9ecae1",
        capsize=3,
        label="time, sparse / dense",
    )
    axes.scatter([row["density"] for row in rows], y, color="#7a3b8f", zorder=3, label="density")
    axes.axvline(1, color="#888888", linewidth=1, linestyle="--")
    axes.set_yticks(y, [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("lower is better; 1 is the time of dense attention on the same ranks")
    axes.legend(loc="lower right")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _label(row: dict[str, Any]) -> str:
    text = (
        f"T={row['latent_frames']} P={row['tokens_per_frame']} H={row['heads']} "
        f"D={row['head_dim']} N={row['ranks']}"
    )
    if row["ranks"] == 1:
        return text
    shared = f" {row['ulysses']} heads" if row["ulysses"] > 1 else ""
    return f"{text}{shared} {row['exchange']}"
