"""Replicas: the requests of a list on parts of the ranks, each made once, in the same bits."""

import json
import logging
import os
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job, open_model
from lvsa.launch.meter import StepTimer
from lvsa.launch.processes import attempts
from lvsa.launch.processes.attempts import LeftAlone
from lvsa.launch.processes.reporting import SharedError, SomeFailed
from lvsa.launch.records.provenance import digest
from lvsa.launch.report import report
from lvsa.launch.requests.lists import requests_of
from lvsa.launch.requests.plan import plan_videos
from lvsa.launch.requests.turns import make_all
from lvsa.mesh import MeshSizes
from tests.support.errors import names, refuses
from tests.support.launched import alone, runtime_of
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
SIZE = ["--num-frames", "45", "--height", "32", "--width", "48", "--steps", "3", "--guidance", "3"]
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
SEEDS = ["--seeds", "0", "1", "2", "3"]
NAMES = [f"clip-{seed}" for seed in range(4)]
TWO = ["--replicas", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def flags(model, out, *more):
    return ["--model", model, "--prompt", "a red circle", *SIZE, "--output-dir", str(out),
            "--output-name", "clip", "--device", "cpu", *SPARSE, *more]  # fmt: skip


def listed(rank, world, arguments, before=None):
    """The launcher on one rank of several; returns the names of the videos that it made.

    Args:
        before: is called before each of them, with the rank of the job, its name and the folder.
    """
    made, make = [], generate.make_video

    def make_video(loaded, job, video, runtime):
        made.append(video.stem.name)
        if before is not None:
            before(runtime.number, video.stem.name, video.stem.parent)
        return make(loaded, job, video, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_video", make_video)
        generate.run(requests_of(parse(arguments)), runtime_of(rank, world))
    return made


def digests(folder):
    return {path.stem: digest(path) for path in folder.glob("*.mp4")}


def until_others_are_made(rank, name, folder):
    """The first replica is slow: its first video takes as long as all that the other one makes."""
    while rank == 0 and len(list(folder.glob("*.mp4"))) < 3 and name in NAMES[:2]:
        time.sleep(0.05)


def test_two_replicas_make_a_list_once_and_the_slow_one_takes_fewer(model, tmp_path):
    alone(flags(model, tmp_path / "alone", *SEEDS))
    out = tmp_path / "out"
    arguments = flags(model, out, *SEEDS, *TWO)
    slow, fast = run_ranks(2, listed, arguments, until_others_are_made)
    assert len(slow) == 1 and sorted(slow + fast) == NAMES
    assert digests(out) == digests(tmp_path / "alone"), "the same bits"
    for name in NAMES:
        record = json.loads((out / f"{name}.json").read_text())
        sequence = record["sequence"]
        assert sequence["mesh"]["replica"] == 2 and sequence["ranks"] == 1
        assert sequence["replica"] == (0 if name in slow else 1)
        assert [rank["rank"] for rank in record["ranks"]] == [sequence["replica"]]
    assert "4 videos" in (out / "index.html").read_text()
    # A record is one video's: it is made again on as many ranks as made it.
    shutil.rmtree(tmp_path / "alone")
    alone(["--from", str(out / "clip-2.json")])
    assert digest(out / "clip-2-again.mp4") == digest(out / "clip-2.mp4")


def fails(rank, name, folder):
    if name == "clip-1":
        raise OSError(28, "disk full")


def failing(rank, world, arguments):
    with refuses(SomeFailed, 1, 4, "clip-1"):
        listed(rank, world, arguments, fails)


def test_replicas_of_several_ranks_and_a_failure_that_ends_no_other(model, tmp_path):
    """Two by two ranks: in the bits of two, and what failed is made by the next start."""
    run_ranks(2, listed, flags(model, tmp_path / "two", *SEEDS))
    out = tmp_path / "out"
    arguments = flags(model, out, *SEEDS, *TWO)
    run_ranks(4, failing, arguments)
    assert sorted(digests(out)) == ["clip-0", "clip-2", "clip-3"]
    page = (out / "index.html").read_text()
    assert "3 videos, 1 failed" in page and "disk full" in page
    made = run_ranks(4, listed, arguments)
    assert made[0] == made[1] and made[2] == made[3]
    assert sorted(made[0] + made[2]) == ["clip-1"]
    assert digests(out) == digests(tmp_path / "two")
    ranks = {
        tuple(rank["rank"] for rank in json.loads(path.read_text())["ranks"])
        for path in out.glob("*.json")
    }
    assert ranks <= {(0, 1), (2, 3)}


def killed(rank, world, arguments, folder):
    """The launcher on a rank: the second one is killed in its second video, and then the first."""
    made, told = [], StepTimer.__call__
    struck = Path(folder) / "struck"

    def tell(timer, step):
        if len(made) == 2 and step == 1:
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        told(timer, step)

    def note(rank, name, _):
        made.append(name)
        while rank == 0 and not struck.exists():
            time.sleep(0.05)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    StepTimer.__call__ = tell
    listed(rank, world, arguments, note)


def test_the_next_start_makes_exactly_what_is_missing(model, tmp_path):
    """As after torchrun, which ends all when one is killed."""
    out = tmp_path / "out"
    arguments = flags(model, out, *SEEDS, *TWO)
    with pytest.raises(RankFailed):
        run_ranks(2, killed, arguments, str(tmp_path))
    before = digests(out)
    assert len(before) == 1
    first, second = run_ranks(2, listed, arguments)
    assert sorted([*first, *second, *before]) == NAMES
    assert before.items() <= digests(out).items()


def warned(rank, world, arguments):
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("lvsa").addHandler(handler)
    return listed(rank, world, arguments), [text for text in heard if "--replicas" in text]


def test_more_replicas_than_requests(model, tmp_path):
    found = run_ranks(3, warned, flags(model, tmp_path, "--seeds", "0", "1", "--replicas", "3"))
    assert sorted(name for made, _ in found for name in made) == NAMES[:2]
    (text,) = found[0][1]
    assert names(text, 3) and names(text, 2) and not found[1][1] + found[2][1]


def elsewhere(rank, world, arguments, folder):
    """Each rank in a folder of its own, as on nodes that share none."""
    own = Path(folder) / str(rank)
    own.mkdir()
    os.chdir(own)
    with refuses(SharedError, "--output-dir", "out", "rank 1"):
        listed(rank, world, arguments)


def test_replicas_that_do_not_share_the_output_folder_are_refused(model, tmp_path):
    run_ranks(2, elsewhere, flags(model, "out", *SEEDS, *TWO), str(tmp_path))
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize("what", [["--prompt", "a"], ["--from", "{record}"]])
def test_one_video_has_no_replicas(what, tmp_path):
    record = tmp_path / "a.json"
    facts = {"config": {"output_dir": "", "output_name": "", "seed": 0}, "video": {"sha256": ""}}
    rest = {"versions": {}, "code": {}, "weights": {}, "sequence": {"ranks": 1}, "inputs": {}}
    record.write_text(json.dumps(facts | rest))
    config = parse([word.format(record=record) for word in what] + ["--replicas", "2"])
    with refuses(LVSAError, "--replicas 2", "--replicas 1", "--prompts", "--seeds"):
        requests_of(config)


def test_replicas_that_cannot_be_and_those_that_are_planned(model):
    def planned(world, *more):
        return make_job(parse(flags(model, "outputs", *SEEDS, *more)), world, CPU)

    with refuses(LVSAError, 3, 4, "3 or 6"):
        planned(4, "--replicas", "3")
    job = planned(8, *TWO, "--guidance-parallel", "--ulysses", "2")
    assert job.mesh == MeshSizes(2, 2, 1, 2) and job.world == 2
    (line,) = [row for row in report(job).splitlines() if row.startswith("replicas")]
    assert names(line, 2) and names(line, 4)
    assert f"mesh       {MeshSizes(1, 2, 1, 2)}\n" in report(job)


def test_a_replica_keeps_its_networks_for_what_another_one_may_leave_behind(model, tmp_path):
    for more, last in (([], [False, False, False, True]), (TWO, [False] * 4)):
        config = parse(flags(model, tmp_path, *SEEDS, *more))
        videos = plan_videos(requests_of(config), open_model(config), 2, CPU)
        assert [video.last for video in videos] == last


def stranded(rank, world):
    """Rank 3 fails in a request while rank 2, of its replica, waits for it in the middle."""
    attempts.PATIENCE = timedelta(seconds=1)
    runtime = runtime_of(rank, world)
    sizes = MeshSizes(replica=2, frames=2)
    team = runtime.of_replica(sizes, sizes.device_mesh("cpu"))
    videos = [SimpleNamespace(stem=Path(name), turn="") for name in "ab"]

    def make(video, left_behind):
        if team.replica == 1:
            if rank == 3:
                raise MemoryError("no room")
            runtime.store.wait(["the others are done"], timedelta(seconds=60))
        else:
            runtime.store.wait([f"lvsa/request/{name}" for name in "ab"], timedelta(seconds=60))

    page = SimpleNamespace(write=lambda problems: None)
    try:
        problems = make_all(videos, make, page, runtime, team)
    except LeftAlone as error:
        return str(error)
    runtime.store.set("the others are done", "")
    return problems


def test_a_failure_that_ends_a_replica_is_not_tried_on_another():
    first, _, _, failed = run_ranks(4, stranded)
    (text,) = first.values()
    assert text == failed and names(text, "rank 3") and names(text, "no room")
