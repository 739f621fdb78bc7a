"""Shapes and motions are recognized, and held against what the caption asks for."""

import numpy as np
import pytest
import torch

from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan.captions import MEETING, MOTIONS, SHAPES, Scene, Subject
from lvsa.studies.tiny_wan.clips import draw_clip
from lvsa.studies.tiny_wan.shapes import UNIT_AREA, distance, radius_of
from tests.support.drawn import CYAN, RED, bounce, pixels_of, still, video_of


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_that_of_the_outline(shape: str) -> None:
    axis = torch.arange(-60, 60) + 0.5
    inside = distance(shape, axis[None], axis[:, None], 50.0) < 0
    assert int(inside.sum()) == pytest.approx(UNIT_AREA[shape] * 50**2, rel=0.01)
    assert radius_of(shape, UNIT_AREA[shape] * 50**2) == pytest.approx(50)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_told_from_every_other(shape: str) -> None:
    clip = draw_clip(Scene((Subject("blue", shape),), "drifts up"), 21, np.random.default_rng(8))
    video = pixels_of(clip)
    found = {asked: measure(video, f"a blue {asked}").shape for asked in SHAPES}
    assert found == {asked: float(asked == shape) for asked in SHAPES}
    assert measure(video, f"a red {shape}").shape == 0
    assert measure(video, "blue").shape is None


@pytest.mark.parametrize("frames", [81, 321])
@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_recognized(motion: str, frames: int) -> None:
    for seed in range(3):
        clip = draw_clip(Scene((RED,), motion), frames, np.random.default_rng([seed, 1]))
        assert measure(pixels_of(clip)).motion == motion


def test_a_motion_is_right_where_it_is_the_one_asked_for() -> None:
    video = pixels_of(draw_clip(Scene((RED,), "drifts up"), 41, np.random.default_rng(0)))
    right = {asked: measure(video, f"a red circle {asked}").motion_right for asked in MOTIONS}
    assert right == {asked: asked == "drifts up" for asked in MOTIONS}
    assert measure(video, "a red circle").motion_right is None


def test_a_meeting_comes_near_and_parts() -> None:
    scene = Scene((RED, CYAN), MEETING)
    clip = draw_clip(scene, 81, np.random.default_rng(2))
    assert measure(pixels_of(clip), scene.caption).motion_right
    apart = video_of(np.array([[[20.0, 32.0]] * 81, [[40.0, 32.0]] * 81]), scene.subjects)
    assert measure(apart, scene.caption).motion_right is False


def test_what_stays_and_what_wanders() -> None:
    assert measure(video_of(still(81))).motion == "stays"
    walk = 32 + np.random.default_rng(0).normal(0, 2.5, (81, 2)).cumsum(axis=0)
    assert measure(video_of(walk[None])).motion == "wanders"
    # Two pictures far apart: too short to tell.
    assert measure(video_of(bounce(81)[:, ::40])).motion == "wanders"
