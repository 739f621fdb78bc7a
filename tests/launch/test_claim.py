"""One job at a time writes a name, and files of killed ones are told from those of running ones."""

import os
import signal
import subprocess
import sys

import pytest

from lvsa.errors import LVSAError
from lvsa.launch.records import claim
from lvsa.launch.records.claim import check_unclaimed, claimed
from lvsa.launch.records.output import output_stem, written_together
from lvsa.launch.records.temporary import held, part_of
from tests.support.errors import refuses

HOLDS = """
import sys, time
from pathlib import Path
from lvsa.launch.records.claim import claimed
from lvsa.launch.records.temporary import held, part_of
stem = Path(sys.argv[1])
with claimed(stem), held(part_of(stem.with_suffix(".mp4"))):
    print("holds", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another job that writes this name."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "clip")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_name_that_another_job_writes_is_refused(other, tmp_path):
    stem = tmp_path / "clip"
    for attempt in (claimed(stem).__enter__, lambda: check_unclaimed(stem)):
        with refuses(LVSAError, stem, other.pid, os.uname().nodename, "--output-name"):
            attempt()
    # The other's files are left alone by whoever starts in the same folder.
    assert len(hidden(tmp_path)) == 2
    output_stem(tmp_path, "another")
    assert len(hidden(tmp_path)) == 2
    check_unclaimed(tmp_path / "another")


def test_a_claim_and_parts_do_not_outlive_their_process(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert len(hidden(tmp_path)) == 2
    (tmp_path / ".mine.part.mp4").touch()
    assert output_stem(tmp_path, "clip") == tmp_path / "clip"
    with claimed(tmp_path / "clip"):
        assert hidden(tmp_path) == [".clip.lock", ".mine.part.mp4"]
    assert hidden(tmp_path) == [".mine.part.mp4"]


def test_without_locks_there_is_a_warning_and_nothing_is_taken_for_abandoned(
    tmp_path, monkeypatch, caplog
):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claim.fcntl, "flock", no_locks)
    with claimed(tmp_path / "clip"), held(part_of(tmp_path / "clip.mp4")):
        assert str(tmp_path) in caplog.text and "Operation not supported" in caplog.text
        output_stem(tmp_path, "another")
        assert len(hidden(tmp_path)) == 2
    assert not hidden(tmp_path)


@pytest.mark.parametrize("moment", range(4))
def test_a_new_file_never_lies_beside_an_old_one(moment, tmp_path, monkeypatch):
    """Killed after any number of the calls that exchange the files."""
    record, video = tmp_path / "a.json", tmp_path / "a.mp4"
    for path in (record, video):
        path.write_text("old")
    left = iter(range(moment))

    class Killed(BaseException):
        pass

    def until_killed(call):
        def counted(*args, **options):
            if next(left, None) is None:
                raise Killed
            return call(*args, **options)

        return counted

    with pytest.raises(Killed), written_together(record, video) as parts:
        for part in parts:
            part.write_text("new")
        monkeypatch.setattr(os, "replace", until_killed(os.replace))
        monkeypatch.setattr(type(video), "unlink", until_killed(type(video).unlink))
    found = {path.suffix: path.read_text() for path in (record, video) if path.exists()}
    assert found in (
        [{".json": "old", ".mp4": "old"}, {".json": "old"}, {".json": "new"},
         {".json": "new", ".mp4": "new"}][moment],
    )  # fmt: skip
