"""The mp4: its colors, its tags, and what is left when it cannot be written."""

import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.loading import weights
from lvsa.launch.media.encoder import check_encoder, write_video
from lvsa.launch.media.ffmpeg import FFmpegError, count_frames, executable
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.output import OutputError, write_record
from lvsa.launch.requests.lists import requests_of
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import forkserver

FFMPEG = executable()
RNG = np.random.default_rng(0)
NOISE = RNG.random((20, 64, 64, 3), np.float32)


def decoded(path, height, width):
    """Frames ``[F, H, W, 3]`` of a file, taken for BT.709 in limited range whatever its tags."""
    scale = "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=accurate_rnd"
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-i", path, "-vf", f"{scale}+full_chroma_int,format=rgb24",
         "-f", "rawvideo", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def facts(path):
    done = subprocess.run([FFMPEG, "-i", path], capture_output=True, text=True, check=False)
    return re.search(r"Video: .*", done.stderr)[0]


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (64, 64)])
def test_colors_come_back(tmp_path, height, width):
    colors = np.array(
        [(0, 255, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 100, 50)]
    )
    frames = np.broadcast_to((colors / 255)[:, None, None], (len(colors), height, width, 3))
    write_video(tmp_path / "a.mp4", frames, 8)
    got = decoded(tmp_path / "a.mp4", height, width)
    assert np.abs(got.astype(int) - colors[:, None, None]).max() <= 2


def test_what_the_file_says_of_itself(tmp_path):
    write_video(tmp_path / "a.mp4", NOISE, 12.5)
    told = facts(tmp_path / "a.mp4")
    for fact in ("h264", "yuv420p(tv, bt709", "64x64", "12.50 fps"):
        assert fact in told
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat"), "it plays while it loads"
    assert count_frames(tmp_path / "a.mp4") == 20


def test_odd_sizes_lose_no_pixel(tmp_path, caplog):
    write_video(tmp_path / "a.mp4", np.zeros((3, 33, 35, 3)), 8)
    assert decoded(tmp_path / "a.mp4", 33, 35).shape == (3, 33, 35, 3)
    assert "35 × 33" in caplog.text and "yuv444p" in facts(tmp_path / "a.mp4")


def test_pixels_that_are_not_numbers(tmp_path):
    frames = NOISE.copy()
    frames[7, 0, 0] = np.nan
    with refuses(OutputError, 7):
        write_video(tmp_path / "a.mp4", frames, 8)
    assert not list(tmp_path.iterdir())


BROKEN = {
    "missing": (None, ["No such file"]),
    "fails": ("echo the disk is on fire >&2; exit 3", [3, "the disk is on fire"]),
    "succeeds and does nothing": ("exit 0", [0]),
    "is killed": ("head -c 1000 > /dev/null; kill -9 $$", ["SIGKILL"]),
    "lacks the codec": (f'exec {FFMPEG} "${{@//libx264/no_such_codec}}"', ["no_such_codec"]),
    "stops early": (f'exec {FFMPEG} "${{@/#-vf/-frames:v 1 -vf}}"', []),
    "loses frames": (
        f'[ "${{*//rawvideo/}}" = "$*" ] && exec {FFMPEG} "$@"\n'
        f'exec {FFMPEG} "${{@:1:$#-1}}" -frames:v 1 "${{@: -1}}"',
        [20, 1],
    ),
}


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path, monkeypatch):
    """An ffmpeg that does not do what it should; what an error must name."""
    script, named = BROKEN[request.param]
    path = tmp_path / "bin" / "ffmpeg"
    path.parent.mkdir()
    if script is not None:
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    return named


def test_whatever_fails_the_encoder_is_an_error(broken, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.mp4").write_text("the good one")
    with refuses(OutputError, folder / "a.mp4", *broken):
        write_video(folder / "a.mp4", NOISE, 8)
    assert (folder / "a.mp4").read_text() == "the good one"
    assert [p.name for p in folder.iterdir()] == ["a.mp4"]


def test_an_encoder_that_does_not_work_is_found_before_the_work(broken):
    with refuses(FFmpegError, *[word for word in broken if word != 20]):
        check_encoder()


def test_an_encoder_that_works():
    check_encoder()


def test_the_launcher_looks_for_the_encoder_before_it_loads_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    monkeypatch.setattr(weights, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    arguments = ["--prompt", "x", "--output-dir", str(tmp_path / "out")]
    with refuses(LVSAError, tmp_path / "none"):
        launched(0, 1, arguments)
    # A dry run writes no video.
    requests = requests_of(parse([*arguments, "--dry-run"]))
    generate.run(requests, Runtime(0, 1, torch.device("cpu")))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts file systems")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    write_record(small_disk / "a.mp4", {"the": "good one"})
    old = (small_disk / "a.mp4").read_bytes()
    with refuses(OutputError, small_disk / "a.mp4", "No space left on device"):
        write_video(small_disk / "a.mp4", NOISE, 8)
    with refuses(OutputError, small_disk / "b.json", "No space left on device"):
        write_record(small_disk / "b.json", {"much": "x" * 30_000})
    assert (small_disk / "a.mp4").read_bytes() == old
    assert [p.name for p in small_disk.iterdir()] == ["a.mp4"]


def test_a_full_disk_at_the_end_of_a_generation(small_disk):
    (small_disk / "clip.mp4").write_text("the good one")
    (small_disk / "ballast").write_bytes(bytes(12_000))
    arguments = ["--prompt", "x", "--num-frames", "17", "--steps", "1", "--output-name", "clip"]
    with refuses(OutputError, small_disk / "clip.mp4", "No space left on device"):
        launched(0, 1, [*arguments, "--output-dir", str(small_disk), "--device", "cpu"])
    assert (small_disk / "clip.mp4").read_text() == "the good one"
    # What was denoised stays for a run that only decodes.
    left = {path.name for path in small_disk.iterdir()}
    assert left - {".checkpoints"} == {"ballast", "clip.mp4"}


def write_without_end(path):
    frame = RNG.random((64, 64, 3), np.float32)
    write_video(path, np.broadcast_to(frame, (10**7, 64, 64, 3)), 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_writes(tmp_path, number, request):
    (tmp_path / "a.mp4").write_text("the good one")
    process = forkserver().Process(target=write_without_end, args=(tmp_path / "a.mp4",))
    process.start()
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in tmp_path.glob(".*.mp4")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.05)
    pid = process.pid
    encoders = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert encoders
    os.kill(pid, number)
    os.kill(pid, number)
    process.join(60)
    # The second one may come when all is cleaned up and signals do again what they always do.
    assert process.exitcode in (1 if number == signal.SIGINT else 128 + number, -number)
    assert (tmp_path / "a.mp4").read_text() == "the good one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in encoders)


def test_a_limit_on_the_size_of_files(tmp_path):
    (tmp_path / "a.mp4").write_text("the good one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with refuses(OutputError, tmp_path / "a.mp4", "SIGXFSZ"):
            write_video(tmp_path / "a.mp4", NOISE, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.mp4").read_text() == "the good one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
