"""Tiles that the ranks of a video decode in turn: the bits of one process, and everybody works."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import distributed as dist

from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.media.frames import decode
from lvsa.launch.media.tiles import sharing_tiles
from lvsa.launch.notes import without_effect
from tests.launch.test_frames import frames_of, latents_of, pipeline
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_cogvideox import cogvideox_pipeline

CPU = torch.device("cpu")
VAES = ["wan, tiles", "ti2v, tiles", "cogvideox, tiles", "hunyuan, tiles", "wan", "hunyuan"]


def tiles_of_rank(rank, world):
    """For each VAE: the frames on the first rank, and how often this one ran the decoder."""
    found = []
    for name in VAES:
        pipe, calls, frames = pipeline(name), [], []
        first = pipe.vae.decoder.conv_in
        handle = first.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with sharing_tiles(pipe.vae, dist.group.WORLD):
            decode(pipe, latents_of(5), frames.append)
        handle.remove()
        assert "forward" not in vars(pipe.vae.decoder)
        found.append((np.stack(frames) if frames else None, len(calls)))
    return found


def test_the_bits_of_one_process():
    world = 3
    ranks = run_ranks(world, tiles_of_rank)
    for number, name in enumerate(VAES):
        expected, at = frames_of(pipeline(name), latents_of(5))
        (frames, _), *others = [rank[number] for rank in ranks]
        assert np.array_equal(frames, expected), name
        assert all(theirs is None for theirs, _ in others)
        calls = [rank[number][1] for rank in ranks]
        assert sum(calls) == at[-1], "nothing is decoded twice"
        assert min(calls) > 0 if "tiles" in name else calls[1:] == [0] * (world - 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    built = {"wan": wan_pipeline(), "cogvideox": cogvideox_pipeline("2b")}
    folder = tmp_path_factory.mktemp("models")
    return {name: str(saved(pipe, folder / name)) for name, pipe in built.items()}


@pytest.fixture
def model(models):
    return models["wan"]


def flags(model, folder, *more):
    return ["--model", model, "--prompt", "a", "--num-frames", "17", "--height", "32", "--width",
            "48", "--steps", "2", "--guidance", "3", "--output-dir", str(folder), "--output-name",
            "clip", "--device", "cpu", *more]  # fmt: skip


def in_small_tiles(rank, world, arguments):
    usual = AutoencoderKLWan.enable_tiling
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderKLWan, "enable_tiling", lambda vae: usual(vae, 16, 16, 8, 8))
        launched(rank, world, arguments)


@pytest.mark.parametrize("more", [[], ["--offload", "model"]])
def test_the_launcher_makes_the_same_video(model, tmp_path, more):
    arguments = flags(model, tmp_path, "--vae-tiling", *more)
    run_ranks(2, in_small_tiles, [*arguments, "--no-vae-parallel"])
    alone = (tmp_path / "clip.mp4").read_bytes()
    run_ranks(2, in_small_tiles, [*arguments, "--vae-parallel"])
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["decoding"] == {"ranks": 2, "shared": "tiles"}
    assert (tmp_path / "clip.mp4").read_bytes() == alone


def test_nobody_waits_where_nothing_is_decoded(model, tmp_path):
    run_ranks(
        2, launched, flags(model, tmp_path, "--vae-tiling", "--vae-parallel", "--output", "latents")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.json", "clip.latents.safetensors"]


@pytest.mark.parametrize(
    ("kind", "world", "more", "notes"),
    [
        ("wan", 1, ["--vae-tiling"], 1),
        ("wan", 2, ["--vae-tiling"], 0),
        ("cogvideox", 2, [], 1),
        ("cogvideox", 2, ["--vae-tiling"], 0),
    ],
)
def test_what_changes_nothing_is_said(models, tmp_path, kind, world, more, notes):
    job = make_job(parse(flags(models[kind], tmp_path, "--vae-parallel", *more)), world, CPU)
    found = [note for note in without_effect(job) if note.startswith("--vae-parallel on:")]
    assert len(found) == notes
