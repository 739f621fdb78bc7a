"""When checkpoints are made, and that the denoising hardly waits for them."""

import threading

import pytest
import torch

from lvsa.launch.checkpoint.folder import CheckpointFolder
from lvsa.launch.checkpoint.identity import Identity, differences, major
from lvsa.launch.checkpoint.keeper import Keeper, Pace
from lvsa.launch.checkpoint.loop import LoopState
from lvsa.launch.checkpoint.values import Attributes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("pace", "size", "now", "due"),
    [
        (Pace(0), 10**9, 0.0, True),
        (Pace(30), 0, 29.9, False),
        (Pace(30), 0, 30.0, True),
        # One percent of the time since the last: 0.3 s of 600 MB at first, then what was measured.
        (Pace(None), 600 * 10**6, 29.9, False),
        (Pace(None), 600 * 10**6, 30.1, True),
        (Pace(None, cost=2.0), 600 * 10**6, 199.0, False),
        (Pace(None, cost=2.0), 600 * 10**6, 201.0, True),
        (Pace(None, cost=2.0, last=100.0), 0, 250.0, False),
    ],
)
def test_when_one_is_due(pace, size, now, due):
    assert pace.due(size, now) == due


def state(steps):
    return LoopState(steps, (torch.full((4,), float(steps)),), Attributes("S", {}), None, {})


class Slow(CheckpointFolder):
    """A disk that waits until it is told to go on."""

    go = threading.Event()

    def write_state(self, packed, steps):
        assert self.go.wait(10)
        super().write_state(packed, steps)


def test_a_slow_disk_is_not_waited_for_unless_every_step_counts(tmp_path):
    Slow.go.clear()
    folder = Slow(tmp_path, Identity({"name": "a"}))
    keeper = Keeper(folder, 1e-9, [])
    for step in (1, 2, 3):
        keeper.keep(lambda step=step: state(step), CPU)
    Slow.go.set()
    keeper.wait()
    assert folder.steps == 1
    keeper.keep(lambda: state(4), CPU)
    keeper.wait()
    assert folder.steps == 4

    Slow.go.clear()
    every = Keeper(folder, 0, None)
    every.keep(lambda: state(5), CPU)
    threading.Timer(0.2, Slow.go.set).start()
    every.keep(lambda: state(6), CPU)
    assert folder.steps == 5, "written before the next one began"
    every.wait()
    assert folder.steps == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_no_number_is_not_kept(value, dtype, tmp_path):
    folder = CheckpointFolder(tmp_path, Identity({"name": "a"}))
    keeper = Keeper(folder, 0, [])
    for step, last in ((1, 60000.0 if dtype == torch.float16 else 1e30), (2, value)):
        latents = torch.tensor([last, 1.0, last], dtype=dtype)
        after = LoopState(step, (latents,), Attributes("S", {}), None, {})
        keeper.keep(lambda after=after: after, CPU)
    keeper.wait()
    assert folder.steps == 1


@pytest.mark.parametrize(
    ("version", "kept"),
    [("2.13.0", "2"), ("2.13.0+cpu", "2"), ("0.42.1", "0.42"), ("1", "1"), ("0.1.dev3", "0.1")],
)
def test_versions_whose_state_means_the_same(version, kept):
    assert major(version) == kept


def test_differences_are_in_words():
    then = {"settings": {"steps": 20, "seed": 1}, "model": "a", "format": 1}
    now = {"settings": {"steps": 30, "seed": 1, "new": True}, "model": "b", "format": 1}
    assert differences(then, now) == ["the model", "new None (now True)", "steps 20 (now 30)"]
