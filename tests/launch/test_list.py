"""A list from end to end: interrupted and gone on with, failures that end nothing, what stays."""

import json
import os
import signal

import imageio.v3 as iio
import pytest
import torch
from torch import distributed as dist

from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.meter import StepTimer
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.provenance import digest
from lvsa.launch.requests.lists import requests_of
from tests.support.errors import refuses
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

SIZE = ["--num-frames", "45", "--height", "32", "--width", "48", "--steps", "3", "--guidance", "3"]
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def flags(model, prompts, out, *more):
    return ["--model", model, "--prompts", str(prompts), *SIZE, "--output-dir", str(out),
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
    with refuses(RankFailed, "rank 0"):
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
