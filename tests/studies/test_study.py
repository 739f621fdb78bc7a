"""The study covers what it says, and its report replaces what is between the marks."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import WanPipeline

from lvsa.errors import LVSAError
from lvsa.studies.quality import report, study
from tests.support.errors import refuses

ASSETS = Path(__file__).parents[2] / "assets" / "tiny-wan"


def test_study_covers_what_it_says() -> None:
    cells = list(study.cells(study.Study(captions=6, seeds=2)))
    horizon = [(seed, c) for v, n, seed, batch in cells if n == 21 for c in batch]
    assert len(set(horizon)) == 40
    beyond = {(v, n, seed) for v, n, seed, batch in cells if n != 21 and len(batch) == 6}
    assert len(beyond) == (len(study.VARIANTS) + 1) * 3 * 2


def test_variants_attend_what_their_names_say() -> None:
    pipe = WanPipeline.from_pretrained(ASSETS)
    offsets: dict[str, int | None] = {}
    for variant in study.VARIANTS:
        with study.attention(pipe, variant, 481) as session:
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
