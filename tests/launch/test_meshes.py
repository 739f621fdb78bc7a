"""Meshes through the launcher: the same video, what travels, and words for what cannot be."""

import json

import numpy as np
import pytest
import torch

from lvsa.errors import DivisibilityError, LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.notes import without_effect
from lvsa.launch.report import head_bytes, received_bytes, report
from tests.support import tiny_cogvideox, tiny_hunyuan
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
SIZE = ["--num-frames", "45", "--height", "32", "--width", "64", *SPARSE]
COG = ["--num-frames", "57", "--height", "32", "--width", "96", *SPARSE]
BOTH = ["--guidance-parallel", "--ulysses", "2"]


def arguments(model, out, *more):
    return ["--model", str(model), "--prompt", "a red circle", "--steps", "3", "--guidance", "3",
            "--output-dir", str(out), "--output-name", "clip", *more]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "size", "mesh"),
    [
        (lambda: wan_pipeline(two_transformers=True), SIZE, BOTH),
        (wan_pipeline, SIZE, ["--ulysses", "2", "--exchange", "ring"]),
        (tiny_hunyuan.hunyuan_pipeline, SIZE, ["--guidance-parallel", "--shard-weights"]),
        (lambda: tiny_cogvideox.cogvideox_pipeline("2b"), COG, BOTH),
    ],
    ids=["wan-2.2", "wan", "hunyuan", "cogvideox"],
)
def test_the_same_video_on_a_mesh(build, size, mesh, tmp_path):
    given = arguments(saved(build(), tmp_path / "model"), tmp_path, *size)
    alone = launched(0, 1, given, True)
    frames, *latents = run_ranks(4, launched, [*given, *mesh])
    for part in latents:
        np.testing.assert_allclose(part, alone, rtol=1e-5, atol=1e-5)
    assert len(frames) == int(size[1])
    record = json.loads((tmp_path / "clip.json").read_text())
    sizes = record["sequence"]["mesh"]
    assert sizes["heads"] == (2 if "--ulysses" in mesh else 1)
    assert sizes["guidance"] == (2 if "--guidance-parallel" in mesh else 1)
    assert np.prod([*sizes.values()]) == 4
    for rank in record["ranks"]:
        assert (rank["head_bytes_received"] > 0) == (sizes["heads"] > 1)
        assert (rank["kv_bytes_received"] > 0) == (sizes["frames"] > 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(wan_pipeline(), tmp_path_factory.mktemp("model"))


def job(model, *more, world=8):
    return make_job(parse(arguments(model, "outputs", *SIZE, *more)), world, CPU)


def test_what_travels_is_planned(model):
    """12 latent frames of 8 tokens among 2 × 2: 24 tokens a rank, of 2 heads of 12 channels."""
    planned = job(model, *BOTH)
    assert planned.world == 4 and str(planned.mesh) == "2 guidance × 2 frames × 2 heads"
    # Queries, keys, values, outputs: half of each is another rank's.
    assert head_bytes(planned) == 4 * 24 * 24 * 4 / 2
    by_frames = received_bytes(planned)
    assert {len(values) for values in by_frames.values()} == {2}
    # One head of two, of the other shard's tokens.
    assert by_frames["all_gather"] == [2 * 48 * 12 * 4] * 2
    text = report(planned)
    assert str(planned.mesh) in text and "heads      " in text


@pytest.mark.parametrize(
    ("more", "world", "error", "named"),
    [
        (["--ulysses", "4"], 8, LVSAError, [2, 4, "1, 2"]),
        (["--ulysses", "2"], 5, LVSAError, [5, "4 or 6"]),
        (["--guidance-parallel"], 3, LVSAError, [3, "2 or 4"]),
        (["--guidance-parallel"], 1, LVSAError, [1, 2]),
        (["--guidance-parallel", "--guidance", "1"], 2, LVSAError, ["--guidance-parallel", 1]),
        (["--guidance-parallel"], 10, DivisibilityError, [96, 5]),
    ],
)
def test_meshes_that_cannot_be(model, more, world, error, named):
    with refuses(error, *named):
        job(model, *more, world=world)


def test_an_exchange_of_frames_needs_ranks_for_them(model):
    notes = without_effect(job(model, *BOTH, "--exchange", "ring", world=4))
    assert any("--exchange" in note for note in notes)
