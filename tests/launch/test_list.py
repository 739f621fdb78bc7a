"""A list from end to end: interrupted and gone on with, failures that end nothing, what stays."""

import json
import os
import shutil
import signal
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from torch import distributed as dist

from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.media import encoder
from lvsa.launch.meter import StepTimer
from lvsa.launch.processes.reporting import SharedError, SomeFailed
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.provenance import digest
from lvsa.launch.requests.lists import requests_of
from tests.support.errors import refuses
from tests.support.launched import alone
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

SIZE = ["--num-frames", "45", "--height", "32", "--width", "48", "--steps", "3", "--guidance", "3"]
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def flags(model, prompts, out, *more):
    return ["--model", str(model), "--prompts", str(prompts), *SIZE, "--output-dir", str(out),
            "--device", "cpu", *SPARSE, *more]  # fmt: skip


@pytest.fixture
def six(tmp_path):
    """Six requests, two of them of other sizes."""
    requests = [{"prompt": f"circle {n}", "seed": n} for n in range(6)]
    requests[1]["num_frames"] = 25
    requests[4] |= {"height": 48, "width": 32, "lvsa": False}
    path = tmp_path / "six.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def listed(rank, world, arguments, killed_in=None):
    """The launcher with a list on one rank of several; returns what it made.

    Args:
        killed_in: the first rank is killed in the denoising of this video, counted from 1.
    """
    made, make, told = [], generate.make_video, StepTimer.__call__

    def make_video(loaded, job, video, runtime):
        made.append(video.number)
        return make(loaded, job, video, runtime)

    def tell(timer, step):
        if rank == 0 and step == 1 and len(made) == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        told(timer, step)

    store = dist.distributed_c10d._get_default_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_video", make_video)
        patch.setattr(StepTimer, "__call__", tell)
        requests = requests_of(parse(arguments))
        generate.run(requests, Runtime(rank, world, torch.device("cpu"), store))
    return made


def videos(folder):
    """Digests of the videos in a folder, and when each was written."""
    found = sorted(folder.glob("*.mp4"))
    return [digest(path) for path in found], [path.stat().st_mtime_ns for path in found]


def test_an_interrupted_list_goes_on(model, six, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run_ranks(2, listed, flags(model, six, whole)) == [[1, 2, 3, 4, 5, 6]] * 2
    # Which of the two is heard of first, the killed one or the one that misses it, is chance.
    with pytest.raises(RankFailed):
        run_ranks(2, listed, flags(model, six, out), 4)
    _, before = videos(out)
    assert len(before) == 3
    assert run_ranks(2, listed, flags(model, six, out)) == [[4, 5, 6]] * 2
    digests, times = videos(out)
    assert len(digests) == 6 and set(before) <= set(times), "three are not made again"
    assert digests == videos(whole)[0], "the same bits"
    for path in out.glob("*.mp4"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["video"]["sha256"] == digest(path)
        assert record["request"]["num_frames"] == len(iio.imread(path))
    assert {path.suffix for path in out.iterdir()} <= {".mp4", ".json", ".html"}, "nothing half"


def interfered(rank, world, arguments, name):
    """A list in which a file appears, once all was checked, that no video can replace."""
    with pytest.MonkeyPatch.context() as patch:
        check = encoder.check_encoder

        def check_and_interfere():
            check()
            Path(name).mkdir()

        patch.setattr(encoder, "check_encoder", check_and_interfere)
        with refuses(SomeFailed, 1, 6, "circle-2-2"):
            listed(rank, world, arguments)


def test_a_failed_request_does_not_end_the_others(model, six, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    run_ranks(2, interfered, flags(model, six, out), str(out / "circle-2-2.mp4"))
    assert sorted(path.name for path in out.glob("*.mp4") if path.is_file()) == [
        "circle-0-0.mp4", "circle-1-1.mp4", "circle-3-3.mp4", "circle-4-4-dense.mp4",
        "circle-5-5.mp4",
    ]  # fmt: skip
    page = (out / "index.html").read_text()
    assert "5 videos, 1 failed" in page and "Is a directory" in page
    (out / "circle-2-2.mp4").rmdir()
    # Its latents were kept: it is decoded, and not denoised again.
    assert run_ranks(2, listed, flags(model, six, out)) == [[]] * 2
    assert "6 videos" in (out / "index.html").read_text()


def test_what_is_wrong_in_a_list_is_said_before_weights_are_loaded(model, six, tmp_path):
    bare = shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with six.open("a") as file:
        file.write('{"prompt": "a", "num_frames": 46}\n{"prompt": "b", "image": "none.png"}\n')
    with refuses(SharedError, "line 7", 46, 45, "line 8", tmp_path / "none.png"):
        alone(flags(bare, six, tmp_path / "out"))


def one(model, out, *more):
    return ["--model", str(model), "--prompt", "a", *SIZE, "--output-dir", str(out), *more]


def test_only_what_was_asked_for_counts_as_done(model, tmp_path):
    """Of everything that changes a video, and of the files that it starts from."""
    out, clip = tmp_path / "out", tmp_path / "out" / "a-0-dense.mp4"
    assert alone(one(model, out)) == ["a-0-dense"]
    # Said or settled, made elsewhere, or by other processes: the same video.
    for same in ([], ["--steps", "3", "--fps", "16"], ["--exchange", "ring", "--timeout", "9"],
                 ["--output-name", "a-0-dense"], ["--show-mask"]):  # fmt: skip
        assert alone(one(model, out, *same)) == []
    for other, now, then in (
        (["--guidance", "4"], 3.0, 4.0), (["--num-frames", "49"], 45, 49),
        (["--negative-prompt", "b"], "b", "''"), (["--dtype", "bfloat16"], "bfloat16", "float32"),
        (["--prompt", "c", "--output-name", "a-0-dense"], "'a'", "'c'"),
    ):  # fmt: skip
        with refuses(SharedError, clip, now, then, "--overwrite"):
            alone(one(model, out, *other))
    before = clip.stat().st_mtime_ns
    assert alone(one(model, out, "--guidance", "4", "--overwrite")) == ["a-0-dense"]
    assert clip.stat().st_mtime_ns > before
    assert alone(one(model, out, "--guidance", "4")) == []


def test_a_video_without_its_own_record_is_not_replaced(model, tmp_path):
    clip = tmp_path / "a-0-dense.mp4"
    clip.write_text("precious")
    with refuses(SharedError, clip):
        alone(one(model, tmp_path))
    assert clip.read_text() == "precious"
    clip.unlink()
    alone(one(model, tmp_path))
    record = clip.with_suffix(".json").read_text()
    for broken in ("", "[]", "{}", record.replace('"sha256": "', '"sha256": "0')):
        clip.with_suffix(".json").write_text(broken)
        with refuses(SharedError, clip):
            alone(one(model, tmp_path))
    clip.with_suffix(".json").write_text(record)
    assert alone(one(model, tmp_path)) == []


def test_other_weights_under_the_same_name_are_another_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "m")
    alone(one(copy, tmp_path / "out"))
    assert alone(one(copy, tmp_path / "out")) == []
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.write_bytes(content)
    assert alone(one(copy, tmp_path / "out")) == [], "written again, and the same"
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, (0, 0))
    with refuses(SharedError, "weights"):
        alone(one(copy, tmp_path / "out"))
