"""The plan in numbers and in a picture, and the times of steps."""

import numpy as np
import torch
from PIL import Image

from lvsa.keyframes import published
from lvsa.launch.meter import StepTimer
from lvsa.launch.picture import draw_pattern
from lvsa.pattern import dense

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
