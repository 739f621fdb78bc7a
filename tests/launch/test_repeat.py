"""A video made again from its record, and what stands in the way of the same bits."""

import json
import shutil

import pytest
from PIL import Image

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.processes.reporting import SharedError
from lvsa.launch.records.provenance import digest
from lvsa.launch.requests.lists import requests_of
from tests.support.errors import refuses
from tests.support.launched import alone
from tests.support.tiny import saved
from tests.support.tiny_wan_family import wan_i2v


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A video from an image, with its record; in a folder of its own."""
    folder = tmp_path_factory.mktemp("original")
    model = saved(wan_i2v(), folder / "model")
    Image.new("RGB", (96, 32), "red").save(folder / "red.png")
    alone(["--model", str(model), "--image", str(folder / "red.png"), "--prompt", "x", "--seed",
           "3", "--num-frames", "9", "--height", "32", "--width", "96", "--steps", "2",
           "--output-dir", str(folder / "out"), "--output-name", "clip",
           "--overwrite"])  # fmt: skip
    return folder / "out"


@pytest.fixture
def record(original, tmp_path):
    """Its record, moved elsewhere with it."""
    shutil.copytree(original, tmp_path / "moved")
    return tmp_path / "moved" / "clip.json"


def edited(record, **entries):
    record.write_text(json.dumps({**json.loads(record.read_text()), **entries}))
    return ["--from", str(record)]


def test_the_same_bits_beside_the_old_ones(record, caplog):
    caplog.set_level("INFO", "lvsa")
    clip = record.with_suffix(".mp4")
    before = digest(clip), clip.stat().st_mtime_ns
    assert alone(["--from", str(record)]) == ["clip-again"]
    assert f"the same bits as the record's: SHA-256 {before[0]}" in caplog.text
    assert digest(clip.with_stem("clip-again")) == before[0]
    assert (digest(clip), clip.stat().st_mtime_ns) == before, "the old one stays"
    again = json.loads(clip.with_name("clip-again.json").read_text())
    assert again["config"]["from_record"] is None and again["config"]["overwrite"] is False
    assert alone(["--from", str(record)]) == [], "it is there now"
    assert alone([f"--from={record}", "--overwrite"]) == ["clip"]
    assert clip.stat().st_mtime_ns > before[1] and digest(clip) == before[0]


def test_flags_change_the_new_video(record, tmp_path, caplog):
    more = ["--guidance", "2", "--output-dir", str(tmp_path / "new"), "--output-name", "other"]
    assert alone(["--from", str(record), *more]) == ["other"]
    assert (tmp_path / "new" / "other.mp4").exists()
    (warning,) = (text for text in caplog.messages if "not the same bits" in text)
    assert warning.endswith("what differs: guidance")


def test_what_differs_is_said(record, caplog):
    then = json.loads(record.read_text())
    changed = edited(
        record,
        video={"sha256": "0" * 64},
        versions={**then["versions"], "torch": "1.0"},
        sequence={**then["sequence"], "ranks": 4},
    )
    alone(changed)
    assert "4 rank(s), this job has 1" in caplog.text
    assert any(text.endswith("what differs: versions, ranks") for text in caplog.messages)


def test_another_image_cannot_give_the_same_video(record, tmp_path):
    other = tmp_path / "blue.png"
    Image.new("RGB", (96, 32), "blue").save(other)
    with refuses(SharedError, "--image", "sha256"):
        alone(["--from", str(record), "--image", str(other)])
    assert not record.with_name("clip-again.mp4").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"config": {}}', '{"config": {"seed": 1}}']
)
def test_files_that_are_no_record(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with refuses(LVSAError, "--from", path):
        requests_of(parse(["--from", str(path)]))


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--prompts", "a.txt"], ["--prompts"]), (["--seeds", "1", "2"], ["--seeds"]),
     (["--config", "a.yaml"], ["--config"]), (["--from", "b.json"], ["--from"])],
)  # fmt: skip
def test_flags_that_exclude_it(record, more, named):
    with refuses(LVSAError, "--from", *named):
        requests_of(parse(["--from", str(record), *more]))
