"""Jobs that are killed, and go on when they are started again: the same bits, whatever happened."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from diffusers import FirstBlockCacheConfig, UniPCMultistepScheduler, WanPipeline

from lvsa.errors import LVSAError, NonFiniteError
from lvsa.launch.checkpoint import file, identity
from lvsa.launch.checkpoint.going_on import can_be_kept
from lvsa.launch.meter import StepTimer
from lvsa.launch.records.output import versions
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

STEPS = 4
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
ALWAYS = ["--checkpoint-seconds", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(two_transformers=True), tmp_path_factory.mktemp("model") / "wan"))


def flags(model, folder, *more):
    return [
        "--model", model, "--prompt", "a red circle", "--steps", str(STEPS), "--guidance", "3",
        "--num-frames", "45", "--height", "32", "--width", "48", "--output-dir", str(folder),
        "--output-name", "clip", "--device", "cpu", "--keep-latents",
        # Between the second step and the third: each transformer denoises a half.
        "--boundary", "0.9", *SPARSE, *more,
    ]  # fmt: skip


def made(folder):
    """Everything that a video is: its bytes, and those of its latents."""
    return [(folder / f"clip{suffix}").read_bytes() for suffix in (".mp4",)] + [latents(folder)]


def latents(folder):
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


def interrupted(rank, world, arguments, step):
    """The launcher, which fails when this step begins; its checkpoints are written."""
    timed = StepTimer.__call__

    def failing(self, at):
        if at == step:
            raise InterruptedError
        timed(self, at)

    StepTimer.__call__ = failing
    try:
        launched(rank, world, arguments)
    except InterruptedError:
        return
    finally:
        StepTimer.__call__ = timed
    raise AssertionError("this was meant to be interrupted")


def test_on_another_number_of_ranks(model, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    launched(0, 1, flags(model, undisturbed))
    arguments = flags(model, disturbed, *ALWAYS)
    run_ranks(3, interrupted, arguments, 1)
    run_ranks(2, interrupted, [*arguments, "--exchange", "ring"], 3)
    launched(0, 1, arguments)
    assert first_step(disturbed) == 3
    one, other = (np.frombuffer(latents(f), np.float32) for f in (undisturbed, disturbed))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_default_names_what_it_goes_on_from(model, tmp_path, caplog):
    caplog.set_level("INFO", "lvsa")
    arguments = flags(model, tmp_path, *ALWAYS)
    interrupted(0, 1, arguments, 2)
    (path,) = (tmp_path / ".checkpoints").iterdir()
    assert sorted(p.name for p in path.iterdir()) == [
        "inputs.safetensors", "job.json", "state.safetensors",
    ]  # fmt: skip
    # What a job left that was killed while it wrote.
    (path / ".0123456789abcdef.part.safetensors").write_bytes(b"half")
    caplog.clear()
    launched(0, 1, arguments)
    assert "after step 2" in caplog.text and str(path) in caplog.text and "--fresh" in caplog.text
    assert first_step(tmp_path) == 2
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seed", "1"], "seed 0 (now 1)"),
        (["--steps", "5"], "steps 4 (now 5)"),
        (["--window-size", "8"], "window_size 4 (now 8)"),
        ("model", "the model"),
        ("version", "torch '1' (now"),
    ],
)
def test_a_checkpoint_of_another_job_is_named_and_left_alone(
    change, named, model, tmp_path, caplog, monkeypatch
):
    copy = str(tmp_path / "model")
    shutil.copytree(model, copy)
    out = tmp_path / "out"
    if change == "version":
        with monkeypatch.context() as patch:
            patch.setattr(identity, "versions", lambda: {**versions(), "torch": "1.13.1"})
            interrupted(0, 1, flags(copy, out, *ALWAYS), 2)
    else:
        interrupted(0, 1, flags(copy, out, *ALWAYS), 2)
    (path,) = (out / ".checkpoints").iterdir()
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    if change == "model":
        weights = Path(copy) / "transformer_2" / "diffusion_pytorch_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        identity.sampled_digest.cache_clear()
    caplog.clear()
    launched(0, 1, flags(copy, out, *(change if isinstance(change, list) else [])))
    assert first_step(out) == 0
    assert str(path) in caplog.text and named in caplog.text
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_fresh_begins_anew(model, tmp_path, caplog):
    caplog.set_level("INFO", "lvsa")
    interrupted(0, 1, flags(model, tmp_path, *ALWAYS), 2)
    launched(0, 1, flags(model, tmp_path, "--fresh"))
    assert first_step(tmp_path) == 0 and "--fresh" in caplog.text
    assert not (tmp_path / ".checkpoints").exists()


def test_what_computes_nothing_new_is_not_computed(model, tmp_path):
    """Texts are not encoded again: what an encoder gives may differ from machine to machine."""
    arguments = flags(model, tmp_path, *ALWAYS)
    interrupted(0, 1, arguments, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WanPipeline, "encode_prompt", None)
        patch.setattr(WanPipeline, "prepare_latents", None)
        launched(0, 1, arguments)
    assert first_step(tmp_path) == 2


def test_latents_that_are_no_numbers_are_not_gone_on_from(model, tmp_path):
    arguments = flags(model, tmp_path, *ALWAYS)
    step = UniPCMultistepScheduler.step

    def broken(self, *args, **kwargs):
        (sample,) = step(self, *args, **kwargs)
        return (sample * float("nan") if self.step_index == 3 else sample,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UniPCMultistepScheduler, "step", broken)
        with refuses(NonFiniteError, 2):
            launched(0, 1, arguments)
    launched(0, 1, arguments)
    assert first_step(tmp_path) == 2


def test_a_broken_checkpoint_stops_every_rank(model, tmp_path):
    arguments = flags(model, tmp_path, *ALWAYS)
    interrupted(0, 1, arguments, 2)
    (path,) = (tmp_path / ".checkpoints").iterdir()
    (path / "inputs.safetensors").write_bytes(b"nothing")
    assert run_ranks(2, stopped, arguments) == [True, True]


def stopped(rank, world, arguments):
    with refuses(LVSAError, "inputs.safetensors", "--fresh"):
        launched(rank, world, arguments)
    return True


def test_a_full_disk_costs_checkpoints_not_the_job(model, tmp_path, caplog):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "save_file", full)
        launched(0, 1, [a for a in flags(model, tmp_path, *ALWAYS) if a != "--keep-latents"])
    assert (tmp_path / "clip.mp4").exists()
    warnings = [r for r in caplog.records if os.strerror(28) in r.getMessage()]
    assert len(warnings) == 2, "of steps once, and of the latents"


def test_a_step_cache_has_no_checkpoints(caplog):
    pipe = wan_pipeline()
    transformers = {"transformer": pipe.transformer}
    assert can_be_kept(transformers) and not caplog.text
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert not can_be_kept(transformers)
    assert "transformer" in caplog.text
