"""Evaluation of video files of colored shapes: freezing, looping, motion and fidelity.

python studies/quality/evaluate.py clip.mp4 --caption "a red circle bounces"
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from lvsa.errors import LVSAError
from lvsa.launch.media.videos import read_video
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import written_whole
from lvsa.studies.quality.measures import Quality, measure

COLUMNS = ("frames", "frozen", "loop", "path", "span", "persistence", "motion", "color", "shape")


@dataclass(frozen=True)
class Evaluation:
    """Measure videos."""

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Video files, mp4 or anything else that ffmpeg reads."""
    caption: str | None = None
    """What the videos should show; its colors, shapes and motion are looked for."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """JSON file for the measures."""


def table(rows: Sequence[tuple[str, Quality]]) -> str:
    """Text table of the measures, a video a line."""
    width = max(len("video"), *(len(name) for name, _ in rows))
    lines = ["video".ljust(width) + "".join(f"{column:>13}" for column in COLUMNS)]
    for name, quality in rows:
        cells = [_cell(getattr(quality, column)) for column in COLUMNS]
        lines.append(name.ljust(width) + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def evaluate(settings: Evaluation) -> list[tuple[str, Quality]]:
    """Name and measures of every video; writes the JSON file if one is asked for.

    Raises:
        LVSAError: for no video, or one that cannot be read.
    """
    if not settings.videos:
        raise LVSAError("no video given; usage: python studies/quality/evaluate.py VIDEO…")
    rows = []
    for path in settings.videos:
        video = read_video(path).frames.astype(np.float32) / 255
        rows.append((str(path), measure(video, settings.caption or "")))
    if settings.output is not None:
        measures = [{"video": n, **asdict(q)} for n, q in rows]
        with written_whole(settings.output) as part:
            part.write_text(json.dumps(measures, indent=2) + "\n")
    return rows


def main() -> None:
    """The command line."""

    def work(_: Place) -> None:
        rows = evaluate(tyro.cli(Evaluation, description=__doc__))
        sys.stdout.write(table(rows) + "\n")

    sys.exit(run_reporting(work))


if __name__ == "__main__":
    main()
