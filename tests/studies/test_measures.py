"""Measures tell frozen, looping, lost and good clips apart, and every color from every other."""

import numpy as np
import pytest

from lvsa.errors import LVSAError
from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan.captions import COLORS, Subject
from lvsa.studies.tiny_wan.clips import SIZE
from tests.support.drawn import CYAN, RED, bounce, orbit, still, video_of
from tests.support.errors import refuses


def test_frozen_looping_and_good_clips_are_told_apart() -> None:
    frozen = measure(video_of(still(81)), "red")
    loop = measure(video_of(orbit(161, 40)), "red")
    good = measure(video_of(bounce(81)), "red")
    assert frozen.frozen == 1 and not frozen.moves and frozen.path < 0.01
    assert loop.frozen == 0 and loop.moves and loop.loop > 0.95
    assert good.frozen == 0 and good.moves and good.loop < 0.6
    for found in (frozen, loop, good):
        assert found.color == 1 and found.color_right and found.persistence == 1


def test_freezing_is_counted_by_frame() -> None:
    path = orbit(81, 60)
    path[:, 40:] = path[:, 40:41]
    assert measure(video_of(path)).frozen == pytest.approx(0.5)


def test_noise_of_a_codec_does_not_hide_freezing() -> None:
    video = video_of(still(30))
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


def test_path_goes_on_after_frames_without_the_object() -> None:
    line = np.array([32.0, 32.0]) + 0.8 * np.arange(81)[:, None] * np.array([1.0, 0.0])
    video = video_of(line[None] % SIZE)
    video[:5] = video[30:40] = 0.3
    found = measure(video, "red")
    assert found.span == pytest.approx(0.8 * 75 / SIZE, rel=0.03)
    assert found.persistence == pytest.approx(66 / 81)


def test_a_vanished_object_is_missed() -> None:
    video = video_of(orbit(80, 60))
    video[60:] = 0.3
    found = measure(video, "red")
    assert found.persistence == pytest.approx(0.75)
    assert found.color == pytest.approx(0.75) and not found.color_right


def test_nothing_to_see_gives_zeros() -> None:
    found = measure(np.full((9, 64, 64, 3), 0.4), "red")
    assert (found.frozen, found.persistence, found.color, found.path) == (1, 0, 0, 0)


@pytest.mark.parametrize("color", COLORS)
def test_every_color_is_told_from_every_other(color: str) -> None:
    video = video_of(still(2), (Subject(color, "square"),))
    right = {asked: measure(video, asked).color for asked in COLORS}
    assert right == {asked: float(asked == color) for asked in COLORS}


def test_both_colors_of_a_meeting_must_be_there() -> None:
    paths = np.array([[[16.0, 32.0]] * 2, [[48.0, 32.0]] * 2])
    both = video_of(paths, (RED, CYAN))
    assert measure(both, "red cyan").color == 1
    assert measure(both, "red blue").color == 0
    assert measure(video_of(paths[:1]), "red cyan").color == 0


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 3), (4, 8, 8, 1)])
def test_what_is_no_video_is_refused(shape: tuple[int, ...]) -> None:
    with refuses(LVSAError, list(shape)):
        measure(np.zeros(shape))
