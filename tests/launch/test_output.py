"""Files written whole or not at all, and the names that a job may write."""

import os
import secrets
import stat
from pathlib import Path

import pytest

from lvsa.errors import LVSAError
from lvsa.launch.records.output import OutputError, output_stem, write_record, written_whole
from tests.support.errors import refuses


def test_files_are_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder" / "file.txt"
    with written_whole(target) as temporary:
        temporary.write_text("all of it")
        assert not target.exists()
    assert target.read_text() == "all of it"
    with pytest.raises(RuntimeError), written_whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "all of it"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_temporary_names_cannot_be_foreseen(tmp_path):
    seen = set()
    for _ in range(2):
        with written_whole(tmp_path / "clip.mp4") as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".mp4"
            assert str(os.getpid()) not in temporary.name
            seen.add(temporary.name)
    assert len(seen) == 2
    longest = tmp_path / ("n" * 251 + ".mp4")
    with written_whole(longest) as temporary:
        temporary.write_text("as long as a name can be")
    assert longest.exists()


def test_a_link_laid_for_the_temporary_is_not_followed(tmp_path, monkeypatch):
    """Nobody can lay it, as the name is random: here the name is made known."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda *_: "known")
    with written_whole(tmp_path / "a.txt") as temporary:
        known = temporary.name
    os.symlink(victim, tmp_path / known)
    with refuses(OutputError, tmp_path / "a.txt"), written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("overwritten")
    assert victim.read_text() == "precious"


def test_a_link_at_the_target_is_replaced(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("precious")
    target.symlink_to(victim)
    write_record(target, {"a": 1})
    assert victim.read_text() == "precious"
    assert not target.is_symlink() and target.read_text() == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_are_those_of_the_umask(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        write_record(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode


def test_what_the_system_refuses_is_an_error_with_its_cause(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with refuses(OutputError, tmp_path / "folder.json", os.strerror(21)):
        write_record(tmp_path / "folder.json", {})
    (tmp_path / "file").write_text("")
    with refuses(OutputError, tmp_path / "file" / "a.json"):
        write_record(tmp_path / "file" / "a.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.json"]


def test_names_of_the_output(tmp_path):
    assert (
        output_stem(tmp_path, "clip.mp4") == output_stem(tmp_path, "clip.MP4") == tmp_path / "clip"
    )
    assert output_stem(tmp_path, "été 1.5 – été").name == "été 1.5 – été"
    assert not list(tmp_path.iterdir()), "the trial leaves nothing"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("a/b", "a-b"), ("/tmp/clip.mp4", "tmp-clip"), ("..\\clip", "clip"), ("..", "video"),
        (".", "video"), ("", "video"), (".mp4", "video"), ("...mp4", "video"),
        ("a\nb", "a-b"), ("clip ", "clip"), (" clip", "clip"),
    ],
)  # fmt: skip
def test_names_that_are_no_file_names(tmp_path, name, nearest):
    with refuses(LVSAError, f"{nearest!r}"):
        output_stem(tmp_path, name)
    assert not list(tmp_path.iterdir())
    assert output_stem(tmp_path, nearest).name == nearest


@pytest.mark.parametrize(
    ("name", "given", "nearest"),
    [("n" * 236, 236, "n" * 235), ("é" * 118, 236, "é" * 117)],
)
def test_names_that_are_too_long_for_the_file_system(tmp_path, name, given, nearest):
    """255 bytes, of which .latents.safetensors takes 20."""
    with refuses(LVSAError, given, 235, nearest):
        output_stem(tmp_path, name)
    for suffix in (".mp4", ".json", ".mask.png", ".latents.safetensors"):
        (tmp_path / f"{output_stem(tmp_path, nearest).name}{suffix}").write_text("")


def test_paths_that_are_too_long(tmp_path, monkeypatch):
    """No part of it is, but all of it."""
    deep = tmp_path
    while len(str(deep)) < 3900:
        deep /= "d" * 100
    with refuses(LVSAError, "File name too long"):
        output_stem(deep, "n" * 200)


@pytest.mark.parametrize("suffix", [".mp4", ".json", ".mask.png"])
def test_targets_that_no_file_can_replace(tmp_path, suffix):
    target = tmp_path / f"clip{suffix}"
    target.mkdir()
    with refuses(LVSAError, target):
        output_stem(tmp_path, "clip")
    target.rmdir()
    os.mkfifo(target)
    with refuses(LVSAError, target):
        output_stem(tmp_path, "clip")
    target.unlink()
    target.write_text("an older one")
    assert output_stem(tmp_path, "clip") == tmp_path / "clip"


def test_folders_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with refuses(LVSAError, folder):
            output_stem(folder, "clip")
    with refuses(LVSAError, "--output-dir"):
        output_stem(Path("a\0b"), "clip")
    # Root may write anywhere but here: access rights would say yes.
    with refuses(LVSAError, "/proc/self"):
        output_stem(Path("/proc/self"), "clip")
