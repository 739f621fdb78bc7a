"""Captions and drawn clips: what training shows, and what it keeps back."""

import numpy as np
import pytest
import torch

from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan import captions, clips
from lvsa.studies.tiny_wan.captions import Asked, asked_by
from tests.support.drawn import pixels_of


def test_held_out_captions_are_not_in_training() -> None:
    singles, meetings = captions.training_scenes()
    kept_out = captions.held_out()
    assert len({scene.caption for scene in kept_out}) == 20
    assert not set(kept_out) & set(singles + meetings)
    assert "a red circle bounces" in {scene.caption for scene in singles}
    subjects = [subject for scene in singles for subject in scene.subjects]
    assert {subject.color for subject in subjects} == set(captions.COLORS)
    assert {subject.shape for subject in subjects} == set(captions.SHAPES)
    assert {scene.motion for scene in singles} == set(captions.MOTIONS)


def test_what_a_caption_asks_for() -> None:
    meeting = asked_by("A red circle, and a blue ring meet")
    assert meeting == Asked(("red", "blue"), ("circle", "ring"), "meet")
    assert asked_by("a red circle circles") == Asked(("red",), ("circle",), "circles")
    assert asked_by("a square drifts  left") == Asked((), ("square",), "drifts left")
    assert asked_by("a dog runs") == Asked((), (), None)


@pytest.mark.parametrize("motion", [*captions.MOTIONS, captions.MEETING])
def test_drawn_clips_do_what_their_captions_say(motion: str) -> None:
    subjects = [captions.Subject("green", "triangle"), captions.Subject("red", "ring")]
    count = 2 if motion == captions.MEETING else 1
    scene = captions.Scene(tuple(subjects[:count]), motion)
    clip = clips.draw_clip(scene, 81, np.random.default_rng(4))
    video = pixels_of(clip)
    assert video.shape == (81, 64, 64, 3) and video.min() >= 0 and video.max() <= 1
    found = measure(video, scene.caption)
    assert found.moves and found.color == 1 and found.persistence == 1
    assert found.shape == 1 and found.motion_right
    if motion.startswith("drifts"):
        dx, dy = (clip.paths[0, 1] - clip.paths[0, 0] + 32) % 64 - 32
        assert tuple(np.sign([dx, dy]).astype(int)) == captions.DIRECTIONS[motion.split()[1]]


def test_a_stretch_of_a_clip_is_that_part_of_it() -> None:
    clip = clips.random_clip(12, np.random.default_rng(0))
    whole = clips.render([clip])
    assert torch.equal(clips.render([clip], first=5, frames=4), whole[:, :, 5:9])
