"""The quality measures tell frozen, looping, lost and good clips apart, in memory and in a file."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from lvsa.errors import LVSAError
from lvsa.studies.quality import evaluate, report
from lvsa.studies.quality import measures as quality
from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan.captions import MOTIONS, SHAPES, Asked, Scene, Subject, asked_by
from lvsa.studies.tiny_wan.clips import SIZE, Clip, draw_clip, render

RED = Subject("red", "circle")


def video_of(path: np.ndarray, subjects: tuple[Subject, ...] = (RED,)) -> np.ndarray:
    """Pixels ``[F, H, W, 3]`` of shapes on the paths ``[S, F, 2]``."""
    background = np.array([[0.2, 0.22, 0.2], [0.4, 0.4, 0.43]])
    clip = Clip(Scene(subjects, "bounces"), path, (9.0,) * len(subjects), background, 0.5)
    return pixels_of(clip)


def pixels_of(clip: Clip) -> np.ndarray:
    return ((render([clip])[0] + 1) / 2).permute(1, 2, 3, 0).numpy()


def orbit(frames: int, period: float) -> np.ndarray:
    turn = 2 * np.pi * np.arange(frames) / period
    return (SIZE / 2 + 15 * np.stack([np.cos(turn), np.sin(turn)], axis=1))[None]


def bounce(frames: int) -> np.ndarray:
    """Off the walls with the two axes' periods far apart, so that nothing comes back soon."""
    clip = draw_clip(Scene((RED,), "bounces"), frames, np.random.default_rng(3))
    return clip.paths


def test_frozen_looping_and_good_clips_are_told_apart() -> None:
    still = measure(video_of(np.full((1, 81, 2), 30.0)), "red")
    loop = measure(video_of(orbit(161, 40)), "red")
    good = measure(video_of(bounce(81)), "red")
    assert still.frozen == 1 and not still.moves and still.path < 0.01
    assert loop.frozen == 0 and loop.moves and loop.loop > 0.95
    assert good.frozen == 0 and good.moves and good.loop < 0.6
    for found in (still, loop, good):
        assert found.color == 1 and found.color_right and found.persistence == 1


def test_freezing_is_counted_by_frame() -> None:
    path = orbit(81, 60)
    path[:, 40:] = path[:, 40:41]
    assert measure(video_of(path)).frozen == pytest.approx(0.5)


def test_noise_of_a_codec_does_not_hide_freezing() -> None:
    video = video_of(np.full((1, 30, 2), 30.0))
    noisy = video + np.random.default_rng(0).normal(0, 0.01, video.shape)
    assert measure(noisy.clip(0, 1)).frozen == 1


def test_path_length_is_the_distance_covered() -> None:
    start = np.array([10.0, 30.0])
    line = start + 0.5 * np.arange(81)[:, None] * np.array([1.0, 0.0])
    found = measure(video_of(line[None]))
    assert found.path == pytest.approx(0.5 * 76 / SIZE, rel=0.02)
    assert found.span == pytest.approx(0.5 * 80 / SIZE, rel=0.02)


def test_path_goes_on_across_the_edge() -> None:
    line = np.array([32.0, 32.0]) + 0.8 * np.arange(161)[:, None] * np.array([-1.0, 0.0])
    found = measure(video_of(line[None] % SIZE))
    assert found.span == pytest.approx(2.0, rel=0.03)
    assert found.loop == 0


def test_a_vanished_object_is_missed() -> None:
    video = video_of(orbit(80, 60))
    video[60:] = 0.3
    found = measure(video, "red")
    assert found.persistence == pytest.approx(0.75)
    assert found.color == pytest.approx(0.75) and not found.color_right


def test_nothing_to_see_gives_zeros() -> None:
    found = measure(np.full((9, 64, 64, 3), 0.4), "red")
    assert (found.frozen, found.persistence, found.color, found.path) == (1, 0, 0, 0)


@pytest.mark.parametrize("color", quality.COLORS)
def test_every_color_is_told_from_every_other(color: str) -> None:
    video = video_of(np.full((1, 2, 2), 30.0), (Subject(color, "square"),))
    right = {asked: measure(video, asked).color for asked in quality.COLORS}
    assert right == {asked: float(asked == color) for asked in quality.COLORS}


def test_both_colors_of_a_meeting_must_be_there() -> None:
    paths = np.array([[[16.0, 32.0]] * 2, [[48.0, 32.0]] * 2])
    both = video_of(paths, (RED, Subject("cyan", "square")))
    assert measure(both, "red cyan").color == 1
    assert measure(both, "red blue").color == 0
    assert measure(video_of(paths[:1]), "red cyan").color == 0


def test_what_a_caption_asks_for() -> None:
    meeting = asked_by("A red circle, and a blue ring meet")
    assert meeting == Asked(("red", "blue"), ("circle", "ring"), "meet")
    assert asked_by("a red circle circles") == Asked(("red",), ("circle",), "circles")
    assert asked_by("a square drifts  left") == Asked((), ("square",), "drifts left")
    assert asked_by("a dog runs") == Asked((), (), None)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_told_from_every_other(shape: str) -> None:
    clip = draw_clip(Scene((Subject("blue", shape),), "drifts up"), 41, np.random.default_rng(8))
    video = pixels_of(clip)
    found = {asked: measure(video, f"a blue {asked}").shape for asked in SHAPES}
    assert found == {asked: float(asked == shape) for asked in SHAPES}
    assert measure(video, f"a red {shape}").shape == 0
    assert measure(video, "blue").shape is None


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frames", [81, 321])
def test_every_motion_is_told_from_every_other(motion: str, frames: int) -> None:
    for seed in range(3):
        clip = draw_clip(Scene((RED,), motion), frames, np.random.default_rng([seed, 1]))
        found = {asked: measure(pixels_of(clip), f"a red circle {asked}") for asked in MOTIONS}
        right = {asked: its.motion_right for asked, its in found.items()}
        assert right == {asked: asked == motion for asked in MOTIONS}


def test_a_meeting_comes_near_and_parts() -> None:
    scene = Scene((RED, Subject("cyan", "square")), "meet")
    clip = draw_clip(scene, 81, np.random.default_rng(2))
    assert measure(pixels_of(clip), scene.caption).motion_right
    still = video_of(np.array([[[20.0, 32.0]] * 81, [[40.0, 32.0]] * 81]), scene.subjects)
    assert measure(still, scene.caption).motion_right is False
    assert measure(still).motion_right is None


def test_what_stays_and_what_wanders() -> None:
    assert measure(video_of(np.full((1, 81, 2), 30.0))).motion == "stays"
    walk = 32 + np.random.default_rng(0).normal(0, 2.5, (81, 2)).cumsum(axis=0)
    assert measure(video_of(walk[None])).motion == "wanders"
    # Two pictures far apart: too short to tell.
    assert measure(video_of(bounce(81)[:, ::40])).motion == "wanders"


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 3), (4, 8, 8, 1)])
def test_what_is_no_video_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LVSAError, match="frames, height, width, 3"):
        measure(np.zeros(shape))


def test_evaluate_measures_files(tmp_path: Path) -> None:
    paths = {"moving": orbit(41, 60), "still": np.full((1, 41, 2), 30.0)}
    for name, path in paths.items():
        pixels = (video_of(path) * 255).round().astype(np.uint8)
        imageio.imwrite(tmp_path / f"{name}.mp4", pixels, fps=16, macro_block_size=16)
    videos = tuple(tmp_path / f"{name}.mp4" for name in paths)
    out = tmp_path / "measures.json"
    rows = evaluate.evaluate(evaluate.Evaluation(videos, caption="a red circle", out=out))
    moving, still = (found for _, found in rows)
    assert moving.frames == still.frames == 41
    assert moving.frozen < 0.1 and moving.moves and moving.color_right
    assert still.frozen > 0.9 and not still.moves
    assert [row["video"] for row in json.loads(out.read_text())] == [str(v) for v in videos]
    assert "moving.mp4" in evaluate.table(rows).splitlines()[1]


def test_evaluate_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(LVSAError, match="no such file"):
        evaluate.read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(LVSAError, match="cannot be read"):
        evaluate.read_video(tmp_path / "text.mp4")
    with pytest.raises(LVSAError, match="no video given"):
        evaluate.evaluate(evaluate.Evaluation(()))


def test_report_replaces_what_is_between_its_marks(tmp_path: Path) -> None:
    result = {
        "seed": 0,
        "caption": "a red circle bounces",
        "moves": True,
        "color_right": True,
        "frozen": 0.0,
        "loop": 0.5,
        "persistence": 1.0,
        "color": 1.0,
        "shape_right": True,
        "motion_right": False,
        "shape": 1.0,
    }
    results = [
        {**result, "variant": "dense", "latent_frames": 21, "frames": 81, "path": 1.0},
        {**result, "variant": "dense", "latent_frames": 41, "frames": 161, "path": 1.0},
        {**result, "variant": "dense", "latent_frames": 41, "frames": 161, "path": 3.0},
    ]
    page = tmp_path / "quality.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(results, tmp_path, 21)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    # Paths of 1 and 3 widths in 160 steps are 0.5 and 1.5 in 80.
    assert "| 2× | dense | 2 | 0.00 ± 0.00 | 0.50 ± 0.00 | – | 1.00 ± 0.50 |" in text
    assert "color right in 1 (100%)" in text and "motion right in 0 (0%)" in text
    drift = {**results[1], "caption": "a red circle drifts up", "loop": 0.1}
    report.write([*results, drift], tmp_path, 21)
    # Loops count over all videos, and over those alone that should have none.
    assert "| 0.37 ± 0.19 | 0.10 ± 0.00 |" in page.read_text()
    assert (tmp_path / "quality-beyond.png").stat().st_size > 1000
    page.write_text("no marks")
    with pytest.raises(LVSAError, match="lacks the marks"):
        report.write(results, tmp_path, 21)
