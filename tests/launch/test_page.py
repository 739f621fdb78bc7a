"""The page of a list, as a browser shows it: videos play, pairs stand side by side, no network."""

import json
import shutil
import subprocess
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.identity import Identity
from lvsa.launch.config import GenerateConfig
from lvsa.launch.media.encoder import write_video
from lvsa.launch.requests.page import NAME, Page
from lvsa.launch.requests.plan import Video
from tests.support.missing import missing

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROBE = """
<script>
setTimeout(() => {
  const figures = [...document.querySelectorAll("figure")].map(figure => {
    const video = figure.querySelector("video"), box = figure.getBoundingClientRect();
    return { text: figure.innerText, left: box.left, top: box.top, class: figure.className,
      video: video && { played: video.currentTime, width: video.videoWidth,
                        seconds: video.duration, error: video.error && video.error.message } };
  });
  const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  const seen = { figures, loaded, title: document.title, wide: document.body.scrollWidth,
    headings: [...document.querySelectorAll("h2")].map(heading => heading.textContent) };
  document.body.innerHTML = "<script type='application/json' id='seen'></" + "script>";
  document.getElementById("seen").textContent = JSON.stringify(seen).replaceAll("<", "\\\\u003c");
}, 1500);
</script>
"""


class Seen(HTMLParser):
    """The text of the script element that the probe leaves."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.found = False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = ("id", "seen") in attrs

    def handle_data(self, data):
        self.found += data if self.inside else ""


def looked_at(folder):
    """What a browser sees on the page of a folder, a second and a half after it came."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        warnings.warn("the page of a list was not looked at: no Chromium here", stacklevel=1)
        missing(f"none of {', '.join(BROWSERS)} is installed")
    (folder / "probed.html").write_text((folder / NAME).read_text() + PROBE)
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900",
         "--virtual-time-budget=6000", "--dump-dom", (folder / "probed.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    return json.loads(Seen(done.stdout).found)


def video(folder, number, of, name, **settings):
    config = GenerateConfig.from_dict({"prompt": "x", "output_dir": str(folder), **settings})
    checkpoint = CheckpointFolder(folder, Identity({"name": name}))
    return Video(number, of, config, folder / name, False, checkpoint, denoised=False)


def made(video, seconds=2.0, seed=0):
    """The files of a finished video; its record holds what the page reads."""
    frames = np.random.default_rng(seed).random((16, 32, 48, 3), np.float32)
    write_video(video.stem.with_name(video.stem.name + ".mp4"), frames, 8)
    request = {"num_frames": 16, "height": 32, "width": 48, "steps": 3, "guidance": 2.0, "fps": 8}
    record = {
        "config": video.config.as_dict(),
        "request": {**request, "seed": video.config.sampling.seed},
        "pattern": {"density": 0.25},
        "seconds": {"loading": 9.0, "denoising": seconds - 0.5, "decoding": 0.5, "writing": 0.1},
        "sequence": {"ranks": 2},
    }
    video.stem.with_name(video.stem.name + ".json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "videos & more #1"
    path.mkdir()
    return path


NASTY = 'a <b>circle</b> & "獅子" </script><script>alert(1)</script>'


def test_a_browser_shows_and_plays_the_page(folder):
    videos = [
        video(folder, 1, 4, "circle", prompt=NASTY, lvsa=True),
        video(folder, 2, 4, "square 50%#?", prompt="square", lvsa=True),
        video(folder, 3, 4, "circle-dense", prompt=NASTY),
        video(folder, 4, 4, "later", prompt="later"),
    ]
    made(videos[0], seconds=2.0)
    made(videos[2], seconds=5.0)
    older = video(folder, 1, 1, "older", prompt="older", seed=7)
    made(older)
    (folder / "other.json").write_text('{"config": {"prompt": 3}}')
    (folder / "other.mp4").write_text("no video")
    page = Page(videos)
    page.write({"square 50%#?": "out of <memory>\nfor it"})
    seen = looked_at(folder)
    assert seen["headings"] == [NASTY, "square", "later", "older"]
    assert seen["title"] == "3 videos, 1 failed, 1 to come"
    dense, sparse, failed, later, before = seen["figures"]
    # Dense and LVSA of one prompt side by side, dense on the left.
    assert dense["top"] == sparse["top"] and dense["left"] < sparse["left"] < 1200
    assert failed["top"] > dense["top"] and seen["wide"] <= 1200
    for figure in (dense, sparse, before):
        assert figure["video"]["error"] is None and figure["video"]["width"] == 48
        assert figure["video"]["seconds"] == 2.0
    assert dense["video"]["played"] > 0 and sparse["video"]["played"] > 0
    assert "dense" in dense["text"] and "5.0 s on 2 ranks" in dense["text"]
    for fact in ("LVSA, density 0.250", "2.0 s on 2 ranks (2.50× as fast)",
                 "16 frames of 32 × 48, 8 fps", "3 steps, guidance 2, seed 0"):  # fmt: skip
        assert fact in sparse["text"]
    assert "seed 7" in before["text"]
    assert failed["class"] == "failed" and "out of <memory>\nfor it" in failed["text"]
    assert later["class"] == "waiting" and later["video"] is None
    assert all(address.startswith("file:") for address in seen["loaded"])
    # Brought up to date as the list goes on.
    made(videos[1])
    made(videos[3])
    Page(videos).write()
    text = (folder / NAME).read_text()
    assert "5 videos" in text and "failed<" not in text and "://" not in text


def test_a_page_of_somebody_else_stays(folder, caplog):
    (folder / NAME).write_text("<p>mine</p>")
    Page([video(folder, 1, 1, "a")]).write()
    assert (folder / NAME).read_text() == "<p>mine</p>"
    assert NAME in caplog.text


def test_a_page_that_cannot_be_written_costs_no_video(folder, caplog):
    one = video(folder, 1, 1, "a")
    Page([replace(one, stem=folder / "none" / "a")]).write()
    (folder / "file").write_text("")
    Page([replace(one, stem=folder / "file" / "a")]).write()
    assert str(folder / "file" / NAME) in caplog.text
