"""The animated picture shows the videos that it says, side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvsa.errors import LVSAError
from lvsa.studies.quality.animation import HEADER, MARGIN, Animation, animate, compose, save
from tests.support.errors import refuses

ASSETS = Path(__file__).parents[2] / "assets" / "tiny-wan"


def test_every_pixel_is_enlarged_and_frames_are_skipped() -> None:
    draw = np.random.default_rng(0)
    videos = {label: draw.random((9, 8, 8, 3)) for label in ("one", "other")}
    pages = compose(videos, speed=4, scale=3)
    assert len(pages) == 3
    for frame, page in zip((0, 4, 8), pages, strict=True):
        for i, video in enumerate(videos.values()):
            left = MARGIN + i * (24 + MARGIN)
            shown = np.asarray(page)[HEADER : HEADER + 24, left : left + 24]
            pixels = (video[frame] * 255).round().astype(np.uint8)
            assert (shown == pixels.repeat(3, axis=0).repeat(3, axis=1)).all()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_keeps_its_pages_and_never_ends(tmp_path: Path, suffix: str) -> None:
    colors = ("#ff0000", "#00ff00", "#0000ff")
    pages = [Image.new("RGB", (20, 10), color) for color in colors]
    save(pages, tmp_path / f"some{suffix}", 0.05)
    with Image.open(tmp_path / f"some{suffix}") as found:
        assert getattr(found, "n_frames", 1) == 3 and found.info["loop"] == 0
        for i, page in enumerate(pages):
            found.seek(i)
            shown = np.asarray(found.convert("RGB"), dtype=int)
            assert np.abs(shown - np.asarray(page, dtype=int)).max() < 40


def test_the_bundled_model_is_shown_twice_and_below_its_horizon_alike(tmp_path: Path) -> None:
    output = tmp_path / "some.gif"
    animate(Animation(output, model=ASSETS, latent_frames=3, steps=1, speed=4, scale=1))
    with Image.open(output) as found:
        assert getattr(found, "n_frames", 1) == 3
        shown = np.asarray(found.convert("RGB"), dtype=int)[HEADER : HEADER + 64]
    dense, sparse = shown[:, MARGIN : MARGIN + 64], shown[:, -MARGIN - 64 : -MARGIN]
    assert np.ptp(dense) > 20
    # The same noise and the same attention, up to the order of its sums.
    assert np.abs(dense - sparse).mean() < 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output": Path("some.mp4")}, ("--output", "some.mp4", ".gif", ".webp")),
        ({"speed": 0}, ("--speed", 0, 1)),
        ({"latent_frames": 1}, ("--latent-frames", 1, 2)),
        ({"model": Path("nowhere")}, ("nowhere",)),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: tuple[Any, ...]) -> None:
    with refuses(LVSAError, *named):
        animate(Animation(**{"model": ASSETS, **change}))
