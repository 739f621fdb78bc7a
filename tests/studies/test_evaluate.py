"""Evaluation of video files: measures, table and JSON, and files that are no videos."""

import json
from pathlib import Path

from lvsa.errors import LVSAError
from lvsa.launch.media.encoder import write_video
from lvsa.studies.quality import evaluate
from tests.support.drawn import orbit, still, video_of
from tests.support.errors import refuses


def test_files_are_measured(tmp_path: Path) -> None:
    paths = {"moving": orbit(41, 60), "still": still(41)}
    for name, path in paths.items():
        write_video(tmp_path / f"{name}.mp4", video_of(path), fps=16)
    videos = tuple(tmp_path / f"{name}.mp4" for name in paths)
    output = tmp_path / "measures.json"
    rows = evaluate.evaluate(evaluate.Evaluation(videos, caption="a red circle", output=output))
    moving, frozen = (found for _, found in rows)
    assert moving.frames == frozen.frames == 41
    assert moving.frozen < 0.1 and moving.moves and moving.color_right
    assert frozen.frozen > 0.9 and not frozen.moves
    assert [row["video"] for row in json.loads(output.read_text())] == [str(v) for v in videos]
    assert "moving.mp4" in evaluate.table(rows).splitlines()[1]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing, text = tmp_path / "none.mp4", tmp_path / "text.mp4"
    text.write_text("no video")
    for path in (missing, text):
        with refuses(LVSAError, path):
            evaluate.evaluate(evaluate.Evaluation((path,)))
    with refuses(LVSAError, "VIDEO"):
        evaluate.evaluate(evaluate.Evaluation(()))
