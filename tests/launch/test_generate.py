"""The launcher from end to end: what a user starts, sees and gets."""

import json
import re
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from lvsa.errors import RankMismatch
from lvsa.launch import job
from lvsa.launch.records.provenance import code_version, folder_digests
from tests.support.errors import refuses
from tests.support.launched import launched, python, torchrun
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

SIZE = ["--num-frames", "45", "--height", "32", "--width", "48"]  # 12 frames of 2 × 3 tokens
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def flags(model, folder, *more):
    return [
        "--model", model, "--prompt", "a red circle", "--steps", "3", "--guidance", "3",
        *SIZE, "--output-dir", str(folder), "--output-name", "clip", "--device", "cpu", *more,
    ]  # fmt: skip


def test_torchrun_writes_a_video_and_its_record(model, tmp_path):
    arguments = flags(model, tmp_path, *SPARSE, "--show-mask")
    done = torchrun(2, arguments)
    assert done.returncode == 0, done.stderr
    assert "[LVSA] installed on 2 blocks" in done.stderr
    assert "denoising" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.json", "clip.mask.png", "clip.mp4"]
    frames = iio.imread(tmp_path / "clip.mp4")
    assert frames.shape == (45, 32, 48, 3)
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["config"]["prompt"] == "a red circle"
    assert record["sequence"]["latent_frames"] == 12
    assert record["pattern"]["density"] < 0.7
    assert [rank["rank"] for rank in record["ranks"]] == [0, 1]
    for rank in record["ranks"]:
        # 2 layers, 3 steps, 2 guidance passes.
        assert rank["attention_calls"] == 12
        assert rank["kv_bytes_received"] > 0
        assert len(rank["seconds_per_step"]) == 3
        assert min(rank["seconds_per_step"]) > 0
    assert record["seconds_per_step_median"] > 0
    assert record["peak_memory_bytes"] > 0
    assert {"torch", "diffusers", "python", "lvsa"} <= set(record["versions"])
    # What the same video needs again.
    assert {rank["threads"] for rank in record["ranks"]} == {1}
    assert all(rank["device"] == "cpu" and rank["host"] for rank in record["ranks"])
    assert record["weights"] == {"sha256": folder_digests(Path(model))}
    assert record["code"] == code_version() and record["inputs"] == {}
    # The record is enough to do it again, bit for bit.
    again = torchrun(2, ["--config", str(tmp_path / "clip.json"), "--output-name", "again"])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    repeated = json.loads((tmp_path / "again.json").read_text())
    assert repeated["config"] == {**record["config"], "output_name": "again"}
    for same in ("request", "pattern", "weights", "code", "versions"):
        assert repeated[same] == record[same]


@pytest.fixture(scope="module")
def one_process(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {
        "sparse": launched(0, 1, flags(model, folder, *SPARSE), True),
        "dense": launched(0, 1, flags(model, folder), True),
    }


@pytest.mark.parametrize(
    ("world", "exchange"), [(2, "all_gather"), (3, "ring"), (3, "needed"), (4, "needed")]
)
def test_the_same_video_on_any_ranks(world, exchange, model, one_process, tmp_path):
    for kind, more in (("sparse", SPARSE), ("dense", [])):
        arguments = flags(model, tmp_path, *more, "--exchange", exchange)
        for latents in run_ranks(world, launched, arguments, True):
            np.testing.assert_allclose(latents, one_process[kind], rtol=1e-5, atol=1e-5)
    assert np.abs(one_process["sparse"] - one_process["dense"]).max() > 1e-3


def test_half_precision_on_several_ranks(model, one_process, tmp_path):
    arguments = flags(model, tmp_path, *SPARSE, "--dtype", "bfloat16")
    first, second = run_ranks(2, launched, arguments, True)
    assert np.array_equal(first, second)
    # Seven bits of mantissa, three steps with guidance: near the float32 latents (about ±3).
    assert 0 < np.abs(first - one_process["sparse"]).mean() < 0.05


def test_encoders_are_loaded_where_they_run(model, tmp_path):
    assert run_ranks(2, encoders, flags(model, tmp_path)) == [True, False]


def encoders(rank, world, arguments):
    from lvsa.launch.loading import weights

    loaded = []
    load = weights.load_pipeline

    def load_pipeline(*args, **options):
        pipe = load(*args, **options)
        loaded.append(pipe.text_encoder is not None)
        return pipe

    weights.load_pipeline = load_pipeline
    launched(rank, world, arguments)
    return loaded[0]


def test_equals_the_stock_pipeline_without_lvsa(model, one_process):
    import torch
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        prompt="a red circle", num_frames=45, height=32, width=48, num_inference_steps=3,
        guidance_scale=3.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames[0]  # fmt: skip
    np.testing.assert_allclose(one_process["dense"], stock, rtol=1e-5, atol=1e-5)


def test_dry_run_loads_no_weights(model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    out = tmp_path / "out"
    done = python(flags(str(bare), out, *SPARSE, "--dry-run", "--ranks", "4"))
    assert done.returncode == 0, done.stderr
    for fact in (
        "T × P = 12 latent frames × 6 tokens = 72 tokens",
        "a keyframe every 4 frames, moving each step (4 offsets); window ±1",
        "anchors    0, 4, 8 at step 0",
        "attended ",
        "density 0.556",
        "TFLOPs per layer and pass",
        "4 rank(s) of 18 tokens = 3 frames",
        "needed ",
        "ring ",
        "all_gather ",
    ):
        assert fact in done.stderr, done.stderr
    assert [p.name for p in out.iterdir()] == ["clip.mask.png"]
    # And with weights asked for, their absence is a message, not a traceback.
    missing = python(flags(str(bare), out))
    assert missing.returncode == 2
    assert "ERROR: --model" in missing.stderr and str(bare) in missing.stderr
    assert "Traceback" not in missing.stderr


def test_dry_run_says_what_would_divide(model, tmp_path):
    done = python(flags(model, tmp_path, "--dry-run", "--ranks", "5"))
    assert done.returncode == 0, done.stderr
    assert "12 latent frames × 6 tokens per frame = 72 tokens do not divide by 5" in done.stderr


def other_settings(rank, world, model, folder):
    with refuses(RankMismatch, "window_size", "12 on rank 0", "8 on rank 1"):
        launched(rank, world, flags(model, folder, "--window-size", "8" if rank else "12"))


def test_ranks_with_other_settings_stop(model, tmp_path):
    run_ranks(2, other_settings, model, str(tmp_path))


def only_here(rank, world, model, folder):
    from lvsa.launch.loading import models
    from lvsa.launch.processes.reporting import SharedError

    # All ranks agreed on the settings; the node of one of them just lacks the directory.
    find = models.find_model
    job.find_model = lambda name, *rest: find(name if rank == 0 else "/nowhere", *rest)
    with refuses(SharedError, "rank 1: ", "/nowhere"):
        launched(rank, world, flags(model, folder))


def test_a_mistake_on_one_rank_stops_all_and_names_it(model, tmp_path):
    run_ranks(2, only_here, model, str(tmp_path))


FAILING = """
import os
from lvsa.launch import generate
from lvsa.launch.loading import weights

if os.environ["RANK"] == "1":
    def load_pipeline(*args, **options):
        raise MemoryError("no room")
    weights.load_pipeline = load_pipeline
generate.main()
"""


def test_a_failed_rank_ends_the_job_and_is_named(model, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = torchrun(2, flags(model, tmp_path / "out"), script=str(script))
    assert done.returncode != 0
    (message,) = re.findall(r"^ERROR: .*$", done.stderr, re.M)
    for fact in ("rank 1 on ", "in loading", "MemoryError: no room"):
        assert fact in message
    # The message comes before whatever torchrun has to say, and is the last of that too.
    assert done.stderr.index(message) < done.stderr.index("Traceback")
    assert "rank 1 on " in done.stderr[done.stderr.index("Root Cause") :]
    assert not list((tmp_path / "out").iterdir())


KILLED = """
import os, signal, time
from lvsa.launch import generate
from lvsa.launch.meter import StepTimer

rank, again = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
if again and rank == "0":
    time.sleep(3)  # The other one finds what was left in the store.
step = StepTimer.__call__

def dies(timer, number):
    if number == 3 and rank == "1" and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    step(timer, number)

StepTimer.__call__ = dies
generate.main()
"""


@pytest.mark.parametrize("more", [["--shard-weights"], ["--replicas", "2", "--seeds", "0", "1"]])
def test_torchrun_may_start_ranks_again(more, model, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    given = flags(model, tmp_path / "out", *more, "--checkpoint-seconds", "0", "--steps", "4")
    done = torchrun(2, given, script=str(script), restarts=1)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "out").glob("*.mp4"))
    assert len(made) == (2 if "--seeds" in more else 1)
    records = [json.loads(video.with_suffix(".json").read_text()) for video in made]
    assert any(record["first_step"] > 0 for record in records), "it went on"


def test_text_is_encoded_and_noise_drawn_on_one_rank(model, tmp_path):
    counts = run_ranks(3, counting, flags(model, tmp_path, *SPARSE))
    assert counts == [(1, 1), (0, 0), (0, 0)]


def counting(rank, world, arguments):
    from diffusers import WanPipeline

    calls = {"encode_prompt": 0, "prepare_latents": 0}
    for name in calls:
        original = getattr(WanPipeline, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            calls[name] += 1
            return original(self, *args, **kwargs)

        setattr(WanPipeline, name, counted)
    launched(rank, world, arguments)
    return tuple(calls.values())
