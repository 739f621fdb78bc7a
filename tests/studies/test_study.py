"""The study covers what it says, and its report replaces what is between the marks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lvsa.errors import LVSAError
from lvsa.studies.quality import report, study
from lvsa.studies.quality.generation import VARIANTS, attention, load
from tests.support.errors import refuses

ASSETS = Path(__file__).parents[2] / "assets" / "tiny-wan"


def test_study_covers_what_it_says() -> None:
    batches = list(study.batches(study.Study(captions=6, seeds=2)))
    horizon = [(seed, c) for _, n, seed, captions in batches if n == 21 for c in captions]
    assert len(set(horizon)) == 40
    beyond = {(v, n, seed) for v, n, seed, captions in batches if n != 21 and len(captions) == 6}
    assert len(beyond) == (len(VARIANTS) + 1) * 3 * 2
    assert len({batch.sheet for batch in batches}) == len(batches)
    assert set(report.ORDER) == {report.DRAWN, *VARIANTS}


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = study.Study(ASSETS, tmp_path, part="beyond", lengths=(2,), seeds=1, captions=1, steps=1)
    results = study.run(first)
    assert [found["variant"] for found in results] == list(report.ORDER)
    assert all(found["frames"] == 5 for found in results)
    assert len(list((tmp_path / "quality").glob("*.png"))) == len(results)
    assert json.loads(first.results.read_text()) == results
    # No pipeline is needed where nothing is missing.
    assert study.run(dataclasses.replace(first, model=tmp_path / "none")) == results
    with refuses(LVSAError, tmp_path / "none"):
        study.run(dataclasses.replace(first, model=tmp_path / "none", seeds=2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"captions": 0}, ("--captions", 0, 1)),
        ({"captions": 21}, ("--captions", 21, 20)),
        ({"seeds": 0}, ("--seeds", 0, 1)),
        ({"lengths": (41, 1)}, ("--lengths", 1, 2)),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(LVSAError, *named):
        study.run(study.Study(**change))


def test_variants_attend_what_their_names_say() -> None:
    pipe = load(ASSETS)
    offsets: dict[str, int | None] = {}
    for variant in VARIANTS:
        with attention(pipe, variant, 121) as session:
            pattern = session.attention.pattern if session else None
            offsets[variant] = pattern.n_offsets if pattern else None
            assert pattern is None or pattern.density < 0.25
    assert offsets["dense"] is None
    assert offsets["published, fixed"] == offsets["even, fixed"] == 1
    assert offsets["published, rotating"] > 1 and offsets["even, rotating"] > 1


RESULT: dict[str, Any] = {
    "variant": "dense",
    "seed": 0,
    "caption": "a red circle bounces",
    "moves": True,
    "color_right": True,
    "frozen": 0.0,
    "loop": 0.5,
    "path": 1.0,
    "persistence": 1.0,
    "color": 1.0,
    "shape_right": True,
    "motion_right": False,
    "shape": 1.0,
}
AT_HORIZON = {**RESULT, "latent_frames": 21, "frames": 81}
BEYOND = {**RESULT, "latent_frames": 41, "frames": 161}


@pytest.fixture
def without_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot", lambda *args: None)


@pytest.mark.usefixtures("without_plot")
def test_report_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    results = [AT_HORIZON, BEYOND, {**BEYOND, "path": 3.0}]
    report.write(results, tmp_path, 21)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    # Paths of 1 and 3 widths in 160 steps are 0.5 and 1.5 in 80.
    assert "| 2× | dense | 2 | 0.00 ± 0.00 | 0.50 ± 0.00 | – | 1.00 ± 0.50 |" in text
    assert "color right in 1 (100%)" in text and "motion right in 0 (0%)" in text
    # Loops count over all videos, and over those alone that should have none.
    report.write(
        [*results, {**BEYOND, "caption": "a red circle drifts up", "loop": 0.1}], tmp_path, 21
    )
    assert "| 0.37 ± 0.19 | 0.10 ± 0.00 |" in page.read_text()


@pytest.mark.usefixtures("without_plot")
def test_report_refuses_a_page_without_marks(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    page.write_text("no marks")
    with refuses(LVSAError, page, report.BEGIN, report.END):
        report.write([AT_HORIZON], tmp_path, 21)
    with pytest.raises(LVSAError):
        report.write([], tmp_path, 21)


def test_plot_is_a_picture(tmp_path: Path) -> None:
    report.plot([AT_HORIZON, BEYOND], tmp_path / "plot.png", 21)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
