"""The plan in numbers and in a picture, and the times of steps."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from lvsa.keyframes import published
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job, reached
from lvsa.launch.meter import StepTimer
from lvsa.launch.picture import draw_pattern
from lvsa.launch.report import report
from lvsa.pattern import FrameMatrices, dense

UNATTENDED = 0xF4, 0xF4, 0xF2


def test_the_timer_times_the_last_generation():
    timer = StepTimer(torch.device("cpu"))
    for step in (0, 1, 2, 0, 1, 2, 3):
        timer(step)
    assert len(timer.seconds()) == 3


def share_unattended(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (np.abs(pixels - UNATTENDED).max(-1) < 2).mean()


def test_the_picture_shows_what_is_attended(tmp_path):
    draw_pattern(published(12, interval=4, window=1, rotate=True), tmp_path / "a.png", world=3)
    draw_pattern(dense(12), tmp_path / "b.png")
    # The color of an unattended frame fills much of the first and none of the second's matrix.
    assert share_unattended(tmp_path / "a.png") > 0.1 > share_unattended(tmp_path / "b.png")


def test_the_picture_of_a_long_video_shows_every_anchor(tmp_path):
    long = published(3000, interval=500, window=0, n_first=0, expand_window=False)
    draw_pattern(long, tmp_path / "long.png", world=4096)
    pixels = np.asarray(Image.open(tmp_path / "long.png").convert("RGB")).astype(int)
    keyframe = np.abs(pixels - (0xE6, 0x86, 0x2D)).max(-1) < 60
    assert (keyframe.mean(0) > 0.3).sum() >= 6, "thin, but there"


@pytest.mark.parametrize("steps", [1, 3, 7, 8])
def test_steps_come_to_the_same_offsets(steps):
    whole = published(40, interval=7, rotate=True)
    some = reached(whole, steps)
    assert some.n_offsets == min(steps, 7)
    for step in range(steps):
        expected = whole.attended[whole.offset(step)]
        assert np.array_equal(some.attended[some.offset(step)], expected)


def test_a_long_video_is_planned_matrix_by_matrix(monkeypatch):
    """Each takes 100 MB at 10,000 latent frames, and there are as many as steps."""
    alive = most = made = 0
    init = FrameMatrices.__init__

    class Counted(np.ndarray):
        """A matrix that tells when it goes."""

    def gone():
        nonlocal alive
        alive -= 1

    def counted(self, n_offsets, frames, make):
        def made_and_counted(offset):
            nonlocal alive, most, made
            matrix = make(offset).view(Counted)
            weakref.finalize(matrix, gone)
            alive, made = alive + 1, made + 1
            most = max(most, alive)
            return matrix

        init(self, n_offsets, frames, made_and_counted)

    monkeypatch.setattr(FrameMatrices, "__init__", counted)
    arguments = "--prompt x --num-frames 981 --lvsa --rotate-keyframes --steps 5 --dry-run"
    job = make_job(parse([*arguments.split(), "--ranks", "4"]), 1, torch.device("cpu"))
    assert job.pattern.parameters["interval"] > job.pattern.n_offsets == 5
    assert "needed" in report(job)
    assert most <= 4 and made <= 30
