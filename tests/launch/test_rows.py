"""Whole frames that the ranks of a video decode together: those of one process, to 1e-5."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from lvsa.errors import LVSAError
from lvsa.launch import finish
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.media import rows, sharing
from lvsa.launch.media.frames import decode
from lvsa.launch.media.rows import SERIES, distvae_missing, most_ranks, sharing_rows, work
from lvsa.launch.media.sharing import shared_in, sharing_line
from lvsa.launch.rehearsal.ledger import Ledger
from lvsa.launch.requests.lists import requests_of
from tests.launch.test_frames import frames_of, latents_of, pipeline
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.missing import missing
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
ON = ["--vae-parallel", "on"]
# Rows of latents: no multiple of the ranks, but where rows are cut in pairs.
VAES = {"wan": 7, "ti2v": 10, "hunyuan": 7}


@pytest.fixture
def distvae():
    if reason := distvae_missing():
        missing(reason)


def shared_by_rank(rank, world):
    """For each VAE: the largest error on the first rank, and the rows of this rank's band."""
    found = []
    for name, height in VAES.items():
        pipe, latents, frames, bands = pipeline(name), latents_of(3, height), [], []
        # A layer that stays as it is, inside of those that keep to a band.
        layer = pipe.vae.decoder.mid_block.resnets[0].nonlinearity
        handle = layer.register_forward_pre_hook(lambda _, x, at=bands: at.append(x[0].shape[-2]))
        layers, own = dict(pipe.vae.named_modules()), set(vars(pipe.vae))
        random = torch.get_rng_state()
        with sharing_rows(pipe.vae, dist.group.WORLD):
            decode(pipe, latents, frames.append)
        handle.remove()
        assert torch.equal(torch.get_rng_state(), random), "no weights were made up for nothing"
        assert dict(pipe.vae.named_modules()) == layers and set(vars(pipe.vae)) == own
        alone, _ = frames_of(pipe, latents)
        assert len(frames) == (len(alone) if rank == 0 else 0)
        error = np.abs(np.stack(frames) - alone).max() if frames else None
        assert {*bands} == {bands[0]}
        found.append((error, bands[0]))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_the_frames_of_one_process(distvae, world):
    ranks = run_ranks(world, shared_by_rank)
    for number, (name, height) in enumerate(VAES.items()):
        assert ranks[0][number][0] <= 1e-5, name
        bands = [rank[number][1] for rank in ranks]
        assert sum(bands) == height and max(bands) - min(bands) <= 2, "everybody has a part"


def too_many(rank, world):
    """Rows of latents that DistVAE refuses to share, for each VAE, and those that it shares."""
    found = []
    for name in VAES:
        vae = pipeline(name).vae
        least = next(n for n in range(1, 99) if most_ranks(vae, n) == world)
        with torch.no_grad(), sharing_rows(vae, dist.group.WORLD):
            vae.decode(latents_of(1, least))
            with pytest.raises(ValueError):
                vae.decode(latents_of(1, least - (vae.config.get("patch_size") or 1)))
        found.append(least)
    return found


def test_each_rank_needs_a_row_of_latents(distvae):
    assert run_ranks(3, too_many) == [[3, 6, 3]] * 3


def in_lock_step(rank, world):
    """Calls of the decoder on this rank by the time that the first one writes each frame."""
    pipe, calls, at = pipeline("wan"), [], []
    pipe.vae.decoder.conv_out.register_forward_pre_hook(lambda *_: calls.append(1))
    with sharing_rows(pipe.vae, dist.group.WORLD):
        inner = pipe.vae.decoder.decoder
        inner.register_forward_pre_hook(lambda *_: calls.append(1))
        decode(pipe, latents_of(5), lambda _: at.append(len(calls)))
    return at


def test_frames_are_written_as_they_are_decoded(distvae):
    at, others = run_ranks(2, in_lock_step)
    assert at == [1] + [call for call in range(2, 6) for _ in range(4)] and others == []


def taken(rank, world):
    """Bytes of tensors at once on this rank, for videos of two lengths, without their latents."""
    found = []
    for T in (6, 24):
        pipe, latents = pipeline("wan"), latents_of(T, height=16)
        with sharing_rows(pipe.vae, dist.group.WORLD), Ledger() as ledger:
            decode(pipe, latents, lambda _: None)
        # Beside them stand the latents that the decoder is given.
        found.append(ledger.peak - latents.nbytes)
    return found


def test_memory_does_not_grow_with_the_video(distvae):
    for short, long in run_ranks(2, taken):
        assert long == pytest.approx(short, rel=0.01)


# In the launcher


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("model") / "wan"))


def flags(model, folder, *more):
    return ["--model", model, "--prompt", "a", "--num-frames", "17", "--height", "32", "--width",
            "48", "--steps", "2", "--guidance", "3", "--output-dir", str(folder), "--output-name",
            "clip", "--device", "cpu", *more]  # fmt: skip


def decoding(folder):
    return json.loads((folder / "clip.json").read_text())["decoding"]


def test_the_launcher_makes_the_same_video(distvae, model, tmp_path):
    alone, *_ = run_ranks(2, launched, flags(model, tmp_path, "--vae-parallel", "off"))
    assert decoding(tmp_path) == {"ranks": 1, "shared": None}
    for more in ([], ["--offload", "model"]):
        frames, *_ = run_ranks(2, launched, flags(model, tmp_path, "--vae-parallel", "on", *more))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]
        assert decoding(tmp_path) == {"ranks": 2, "shared": "rows"}
        np.testing.assert_allclose(frames, alone, rtol=0, atol=1e-5)


def failing(rank, world, arguments, who):
    """The launcher, whose decoding fails on one rank after all have begun it."""
    usual = finish.sharing

    def sharing(vae, helpers):
        def fail(*_):
            raise InterruptedError(f"planted on rank {rank}")

        if rank == who:
            vae.decoder.norm_out.register_forward_pre_hook(fail)
        return usual(vae, helpers)

    finish.sharing = sharing
    launched(rank, world, arguments)


def test_a_rank_that_fails_is_named_and_the_latents_are_decoded_by_all(distvae, model, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run_ranks(2, launched, flags(model, undisturbed, *ON))
    with pytest.raises(RankFailed) as failed:
        run_ranks(2, failing, flags(model, disturbed, *ON), 1)
    assert "planted on rank 1" in str(failed.value)
    assert [p.name for p in disturbed.iterdir()] == [".checkpoints"]
    run_ranks(2, launched, flags(model, disturbed, *ON))
    assert decoding(disturbed) == {"ranks": 2, "shared": "rows"}
    one, other = ((folder / "clip.mp4").read_bytes() for folder in (undisturbed, disturbed))
    assert one == other


# What is asked for, and what cannot be


def planned(model, folder, world, *more):
    return make_job(parse(flags(model, folder, *more)), world, CPU)


def test_auto_leaves_it_to_the_first_rank_where_ranks_do_not_share(
    distvae, model, tmp_path, monkeypatch
):
    small = planned(model, tmp_path, 2)
    assert shared_in(small) is None and "small" in sharing_line(small)
    monkeypatch.setattr(sharing, "WORTH", work(small.skeleton.vae, 4 * 6))
    assert shared_in(planned(model, tmp_path, 2)) == "rows"
    assert shared_in(planned(model, tmp_path, 2, "--vae-tiling")) == "tiles"
    for world, more in ((1, []), (2, ["--vae-parallel", "off"]), (2, ["--output", "latents"])):
        assert shared_in(planned(model, tmp_path, world, *more)) is None
    assert sharing_line(planned(model, tmp_path, 1)) is None
    for world, more, named in ((6, [], 4), (2, ["--offload", "group"], "--offload group")):
        job = planned(model, tmp_path, world, *more)
        assert shared_in(job) is None and str(named) in sharing_line(job)
    # Whose GPUs round what they multiply.
    gpu = replace(planned(model, tmp_path, 2), device=torch.device("cuda"))
    assert shared_in(gpu) is None and "TF32" in sharing_line(gpu)
    processes = replace(gpu.config.processes, vae_parallel="on")
    assert shared_in(replace(gpu, config=replace(gpu.config, processes=processes))) == "rows"


def test_what_is_asked_for_and_cannot_be_stops(distvae, model, tmp_path):
    with refuses(LVSAError, "--vae-parallel", 4, 6, "--vae-tiling"):
        planned(model, tmp_path, 6, *ON)
    with refuses(LVSAError, "--vae-parallel", "--offload group", "--offload model"):
        planned(model, tmp_path, 2, *ON, "--offload", "group")
    assert shared_in(planned(model, tmp_path, 3, *ON)) == "rows"
    assert shared_in(planned(model, tmp_path, 6, *ON, "--vae-tiling")) == "tiles"


@pytest.mark.parametrize("installed", [None, "0.0.9", "0.10.0"])
def test_without_distvae(model, tmp_path, monkeypatch, installed):
    def version(name):
        if installed is None:
            raise rows.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(rows, "version", version)
    for asked in (["--vae-parallel"], ON):
        with refuses(LVSAError, "lvsa-launcher[vae]", "--vae-tiling", installed or "distvae"):
            planned(model, tmp_path, 2, *asked)
    assert shared_in(planned(model, tmp_path, 2)) is None
    assert "lvsa-launcher[vae]" in sharing_line(planned(model, tmp_path, 2))
    assert planned(model, tmp_path, 1, "--vae-parallel") is not None


def test_the_extra_asks_for_the_same_versions():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    major, minor = map(int, SERIES.split("."))
    assert project.count(f'"distvae>={SERIES},<{major}.{minor + 1}"') == 2


def test_in_a_list_only_where_it_is_asked_for(model, tmp_path):
    def asked(*more):
        arguments = flags(model, tmp_path, "--seeds", "1", "2", *more)
        return {r.config.processes.vae_parallel for r in requests_of(parse(arguments))}

    assert asked() == {"off"} and asked("--vae-parallel") == {"on"}
    # Nothing makes way where weights are in the host's memory anyway, or stay in parts.
    assert asked("--offload", "model") == asked("--shard-weights") == {"auto"}
