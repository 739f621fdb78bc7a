"""Training of the tiny Wan: its losses, its progress, and a whole run in miniature."""

import dataclasses
from pathlib import Path
from pickle import PicklingError

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from lvsa.errors import LVSAError
from lvsa.studies.tiny_wan import checkpoints, latents, model
from lvsa.studies.tiny_wan import train as train_tiny
from lvsa.studies.tiny_wan.dit_stage import DiTTraining
from lvsa.studies.tiny_wan.progress import WARMUP_STEPS, Progress
from lvsa.studies.tiny_wan.vae_stage import VAETraining, loss_of, with_cuts, with_stills
from tests.support.errors import refuses


def test_cuts_join_clips_at_the_start_of_latent_frames() -> None:
    draw = np.random.default_rng(0)
    whole = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 49, 2, 2)
    cut = with_cuts(whole, draw)[:, 0, :, 0, 0]
    assert torch.equal(cut.sort(dim=0).values, whole[:, 0, :, 0, 0])
    changes = (cut.diff(dim=1) != 0).any(dim=0).nonzero().flatten() + 1
    assert len(changes) > 1 and (changes % 4 == 1).all()


def test_stills_ask_that_first_latent_frames_are_encoded_alike() -> None:
    draw = np.random.default_rng(0)
    video = torch.rand(8, 3, 9, 64, 64) * 2 - 1
    after, still = with_stills(video, draw)
    assert 0 < still.sum() < 8
    assert torch.equal(after[~still], video[~still]) and torch.equal(
        after[:, :, 5:], video[:, :, 5:]
    )
    assert (after[still, :, 1:5] == video[still, :, :1]).all()
    assert not with_stills(video[:, :, :1], draw)[1].any()
    # The weight counts where something stands still, and only there.
    vae, losses = model.build_vae(base_dim=4), {}
    for weight in (0.0, 1.0):
        for standing in (still[:0].new_zeros(8), still):
            torch.manual_seed(0)
            settings = VAETraining(first_weight=weight)
            loss, _ = loss_of(vae, after, standing, settings, autocast=False)
            losses[weight, bool(standing.any())] = float(loss.detach())
    assert losses[0.0, False] == losses[0.0, True] == losses[1.0, False] < losses[1.0, True]


def test_rate_rises_then_falls_and_time_can_run_out() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rates = []
    stage = Progress(steps=400, minutes=None, seconds_before=0)
    for step in range(400):
        stage.set_rate([optimizer], 2.0, step)
        rates.append(optimizer.param_groups[0]["lr"])
    top = int(np.argmax(rates))
    assert abs(top - WARMUP_STEPS) <= 1 and rates[0] < 0.1 and rates[-1] < 0.05
    assert Progress(steps=400, minutes=1, seconds_before=61).share(3) == 1
    assert Progress(steps=400, minutes=None, seconds_before=61).share(200) == 0.5


def tiny_training(folder: Path) -> train_tiny.Training:
    return train_tiny.Training(
        work=folder / "work",
        out=folder / "out",
        clips=2,
        measure_clips=1,
        sample_steps=1,
        vae=VAETraining(steps=2, batch=1, frames=5, base_dim=4),
        dit=DiTTraining(steps=2, sample_every=1, frames=3, batch=2, heads=2, head_dim=12, layers=1),
    )


def test_training_in_miniature_goes_on_and_makes_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "SHARD", 2)
    monkeypatch.setattr(latents, "BATCH", 2)
    monkeypatch.setattr(train_tiny, "SAMPLES", ("a red circle bounces",))
    settings = tiny_training(tmp_path)
    out = train_tiny.train(settings)
    first = checkpoints.load(settings.work / "dit.pt")
    assert first is not None and first["step"] == 2
    assert "2 clips" in (out / "README.md").read_text()
    pictures = {"vae.png", "vae-full.png", "samples-00001.png", "samples-00002.png"}
    assert {path.name for path in settings.work.glob("*.png")} == pictures
    # One more step goes on from the checkpoint: the weights move, but the VAE's stay.
    vae = checkpoints.load(settings.work / "vae.pt")
    more = dataclasses.replace(settings, dit=dataclasses.replace(settings.dit, steps=3))
    train_tiny.train(more)
    second = checkpoints.load(settings.work / "dit.pt")
    same = checkpoints.load(settings.work / "vae.pt")
    assert second is not None and second["step"] == 3 and vae is not None and same is not None
    name = "transformer.patch_embedding.weight"
    assert not torch.equal(first["model"][name], second["model"][name])
    assert all(torch.equal(vae["model"][key], value) for key, value in same["model"].items())
    # Latents have mean 0 and variance 1 by what the pipeline's VAE says of itself.
    pipe = WanPipeline.from_pretrained(out)
    assert pipe.vae.config.latents_mean != [0.0] * model.Z_DIM
    stored = latents.read_latents(settings.work)
    assert stored.values.float().std() == pytest.approx(1, abs=0.01)
    assert pipe.vae.config.latents_std == pytest.approx(stored.std.tolist())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clips": 0}, ("--clips", 0, 1)),
        ({"vae": VAETraining(frames=6)}, ("--vae.frames", 6, 5)),
        ({"dit": DiTTraining(batch=0)}, ("--dit.batch", 0, 1)),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, change: dict, named: tuple) -> None:
    with refuses(LVSAError, *named):
        train_tiny.train(dataclasses.replace(tiny_training(tmp_path), **change))


def test_checkpoints_replace_one_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "some" / "state.pt"
    assert checkpoints.load(path) is None
    checkpoints.save({"step": 1}, path)
    with pytest.raises((PicklingError, AttributeError)):
        checkpoints.save({"step": lambda: None}, path)
    assert checkpoints.load(path) == checkpoints.require(path) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    missing = tmp_path / "vae.pt"
    with refuses(LVSAError, missing):
        checkpoints.require(missing)
    with refuses(LVSAError, tmp_path / "latents"):
        latents.read_latents(tmp_path)
