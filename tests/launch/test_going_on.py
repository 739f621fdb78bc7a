"""Jobs that are killed, and go on when they are started again: the same bits, whatever happened."""

import json
import os
import signal

import pytest

from lvsa.launch.meter import StepTimer
from tests.support.launched import launched
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

STEPS = 6
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
ALWAYS = ["--checkpoint-seconds", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(two_transformers=True), tmp_path_factory.mktemp("model") / "wan"))


def flags(model, folder, *more):
    return [
        "--model", model, "--prompt", "a red circle", "--steps", str(STEPS), "--guidance", "3",
        "--num-frames", "45", "--height", "32", "--width", "48", "--output-dir", str(folder),
        "--output-name", "clip", "--device", "cpu", "--keep-latents", *SPARSE, *more,
    ]  # fmt: skip


def made(folder):
    """Everything that a video is: its bytes, and those of its latents."""
    return [(folder / f"clip{suffix}").read_bytes() for suffix in (".mp4",)] + [latents(folder)]


def latents(folder):
    from lvsa.launch.checkpoint import file

    packed, _ = file.read(folder / "clip.latents.safetensors")
    (tensor,) = packed.tensors.values()
    return tensor.numpy().tobytes()


def dying(rank, world, arguments, step, victim):
    """The launcher on a rank that is killed when this step begins."""
    timed = StepTimer.__call__

    def killing(self, at):
        if at == step and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        timed(self, at)

    StepTimer.__call__ = killing
    launched(rank, world, arguments)


def first_step(folder):
    return json.loads((folder / "clip.json").read_text())["first_step"]


def test_killed_at_every_step_in_turn(model, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run_ranks(2, launched, flags(model, undisturbed))
    arguments = flags(model, disturbed, *ALWAYS)
    for step in range(1, STEPS + 1):
        with pytest.raises(RankFailed):
            run_ranks(2, dying, arguments, step, step % 2)
        assert not (disturbed / "clip.mp4").exists()
    run_ranks(2, launched, arguments)
    assert made(disturbed) == made(undisturbed)
    assert first_step(undisturbed) == 0
    assert first_step(disturbed) >= STEPS - 2
    assert sorted(p.name for p in disturbed.iterdir()) == [
        "clip.json", "clip.latents.safetensors", "clip.mp4",
    ]  # fmt: skip
