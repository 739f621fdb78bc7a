"""The tiny Wan: its data, its training in miniature, and the trained pipeline if it is there."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from lvsa.errors import LVSAError
from lvsa.studies.quality import study as study_quality
from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan import captions, checkpoints, chunks, clips, latents, model, muon, text
from lvsa.studies.tiny_wan import train as train_tiny
from lvsa.studies.tiny_wan.dit_stage import Denoiser, DiTTraining, draw_sigmas
from lvsa.studies.tiny_wan.progress import WARMUP_STEPS, Progress
from lvsa.studies.tiny_wan.vae_stage import VAETraining, loss_of, with_cuts, with_stills

ASSETS = Path(__file__).parents[2] / "assets" / "tiny-wan"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_held_out_captions_are_not_in_training() -> None:
    singles, meetings, _ = captions.training_scenes()
    kept_out = captions.held_out()
    assert len({scene.caption for scene in kept_out}) == 20
    assert not set(kept_out) & set(singles + meetings)
    assert "a red circle bounces" in {scene.caption for scene in singles}
    subjects = [subject for scene in singles for subject in scene.subjects]
    assert {subject.color for subject in subjects} == set(captions.COLORS)
    assert {subject.shape for subject in subjects} == set(captions.SHAPES)
    assert {scene.motion for scene in singles} == set(captions.MOTIONS)


@pytest.mark.parametrize("motion", [*captions.MOTIONS, captions.MEETING])
def test_drawn_clips_do_what_their_captions_say(motion: str) -> None:
    subjects = [captions.Subject("green", "triangle"), captions.Subject("red", "ring")]
    count = 2 if motion == captions.MEETING else 1
    scene = captions.Scene(tuple(subjects[:count]), motion)
    clip = clips.draw_clip(scene, 81, np.random.default_rng(4))
    video = clips.render([clip])
    assert video.shape == (1, 3, 81, 64, 64) and video.abs().max() <= 1
    found = measure(((video[0] + 1) / 2).permute(1, 2, 3, 0).numpy(), scene.caption)
    assert found.moves and found.color == 1 and found.persistence == 1
    assert found.shape == 1 and found.motion_right
    if motion.startswith("drifts"):
        dx, dy = (clip.paths[0, 1] - clip.paths[0, 0] + 32) % 64 - 32
        assert tuple(np.sign([dx, dy]).astype(int)) == clips.DIRECTIONS[motion.split()[1]]


def test_a_stretch_of_a_clip_is_that_part_of_it() -> None:
    clip = clips.random_clip(12, np.random.default_rng(0))
    whole = clips.render([clip])
    assert torch.equal(clips.render([clip], first=5, frames=4), whole[:, :, 5:9])


def test_cuts_join_clips_at_the_start_of_latent_frames() -> None:
    draw = np.random.default_rng(0)
    whole = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 49, 2, 2)
    cut = with_cuts(whole, draw)[:, 0, :, 0, 0]
    assert torch.equal(cut.sort(dim=0).values, whole[:, 0, :, 0, 0])
    changes = (cut.diff(dim=1) != 0).any(dim=0).nonzero().flatten() + 1
    assert len(changes) > 1 and (changes % 4 == 1).all()


def test_stills_ask_for_one_language_of_the_first_latent_frames() -> None:
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


def test_tokenizer_knows_the_words_and_spells_the_rest() -> None:
    tokenizer = model.build_tokenizer()
    for scene in captions.held_out():
        # One token a word, and the end.
        assert len(tokenizer(scene.caption).input_ids) == len(scene.caption.split()) + 1
    assert len(tokenizer("").input_ids) == 1
    strange = "Ein Hündchen läuft – 犬"
    ids = tokenizer(strange).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == strange


def test_two_passes_equal_the_vae_s_own_frame_by_frame() -> None:
    torch.manual_seed(0)
    vae = model.build_vae(base_dim=4).eval()
    video = clips.render([clips.random_clip(17, np.random.default_rng(1))])
    with torch.no_grad():
        parameters = chunks.encode(vae, video)
        torch.testing.assert_close(
            parameters, vae.encode(video).latent_dist.parameters, atol=1e-5, rtol=1e-5
        )
        mean = parameters.chunk(2, dim=1)[0]
        assert mean.shape == (1, 8, 5, 8, 8)
        decoded = chunks.decode(vae, mean)
        torch.testing.assert_close(
            decoded.clamp(-1, 1), vae.decode(mean).sample, atol=1e-5, rtol=1e-5
        )


def test_training_s_attention_and_short_text_equal_the_pipeline_s() -> None:
    torch.manual_seed(0)
    tokenizer = model.build_tokenizer()
    settings = DiTTraining(heads=2, head_dim=12, layers=2)
    denoiser = Denoiser(settings, len(tokenizer)).eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight)
    prompts = ["a red circle bounces", "", "a red circle and a cyan ring meet"]
    ids, mask = text.tokenize(tokenizer, prompts)
    noisy, timestep = torch.randn(3, 8, 3, 8, 8), torch.tensor([900.0, 500.0, 10.0])
    with torch.no_grad():
        short = denoiser(noisy, timestep, ids, mask)
        pipe = model.build_pipeline(
            model.build_vae(base_dim=4), tokenizer, denoiser.text_encoder, denoiser.transformer
        )
        rows, _ = pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=512
        )
        denoiser.transformer.set_attn_processor(WanAttnProcessor())
        padded = denoiser.transformer(noisy, timestep, rows, return_dict=False)[0]
    torch.testing.assert_close(short, padded, atol=1e-4, rtol=1e-4)


def test_sigmas_are_the_scheduler_s() -> None:
    sigmas = draw_sigmas(1000, torch.Generator().manual_seed(0)).sort(descending=True).values
    scheduler = model.FlowMatchEulerDiscreteScheduler(shift=model.FLOW_SHIFT)
    # Strata of a thousandth: each drawn level lies within one step of the scheduler's own.
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=0.006, rtol=0)


def test_muon_s_update_is_nearly_orthogonal() -> None:
    for shape in ((8, 30), (30, 8)):
        x = muon.orthogonalized(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))
        values = torch.linalg.svdvals(x)
        assert x.shape == shape and values.min() > 0.5 and values.max() < 1.3


def test_muon_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layer, target = torch.nn.Linear(8, 8), torch.randn(8, 8, generator=generator)
    optimizers = muon.optimizers(layer.named_parameters(), 0.15, 0.0, ())
    losses = []
    for _ in range(150):
        x = torch.randn(64, 8, generator=generator)
        loss = (layer(x) - x @ target).square().mean()
        layer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]


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
    assert all(torch.equal(vae["vae"][key], value) for key, value in same["vae"].items())
    # Latents have mean 0 and variance 1 by what the pipeline's VAE says of itself.
    pipe = WanPipeline.from_pretrained(out)
    assert pipe.vae.config.latents_mean != [0.0] * model.Z_DIM
    stored = latents.read_latents(settings.work)
    assert stored.values.float().std() == pytest.approx(1, abs=0.01)
    assert pipe.vae.config.latents_std == pytest.approx(stored.std.tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 0}, "--clips is 0"),
        ({"vae": VAETraining(frames=6)}, "nearest: 5"),
        ({"dit": DiTTraining(batch=0)}, "--dit.batch is 0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(LVSAError, match=message):
        train_tiny.train(dataclasses.replace(tiny_training(tmp_path), **change))


def test_checkpoints_replace_one_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "some" / "state.pt"
    assert checkpoints.load(path) is None
    checkpoints.save({"step": 1}, path)
    with pytest.raises(Exception, match=r"pickle|local"):
        checkpoints.save({"step": lambda: None}, path)
    assert checkpoints.load(path) == {"step": 1}


def test_study_covers_what_it_says() -> None:
    study = study_quality.Study(captions=6, seeds=2)
    cells = list(study_quality.cells(study))
    horizon = [(seed, c) for v, n, seed, batch in cells if n == 21 for c in batch]
    assert len(set(horizon)) == 40
    beyond = {(v, n, seed) for v, n, seed, batch in cells if n != 21 and len(batch) == 6}
    assert len(beyond) == (len(study_quality.VARIANTS) + 1) * 3 * 2


assets = pytest.mark.skipif(not ASSETS.exists(), reason="assets/tiny-wan has not been trained")


@pytest.fixture(scope="module")
def trained() -> WanPipeline:
    pipe = WanPipeline.from_pretrained(ASSETS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@assets
def test_assets_are_small_and_described() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    weights = [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert not weights and len(list(ASSETS.rglob("*.safetensors"))) == 3
    card = (ASSETS / "README.md").read_text()
    for word in ("Data", "Recipe", "Seed", "Limits"):
        assert word in card


@assets
def test_trained_vae_gives_clips_back(trained: WanPipeline) -> None:
    video = clips.render([clips.random_clip(81, np.random.default_rng(77))])
    with torch.no_grad():
        code = trained.vae.encode(video).latent_dist.mode()
        back = trained.vae.decode(code).sample
    # A gray picture of the right brightness has an error of about 0.08.
    assert (back - video).square().mean() < 0.003
    # The first latent frame, of one video frame, speaks as the others do, of four.
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        first, second = trained.vae.encode(still).latent_dist.mode().unbind(dim=2)
    assert (first - second).square().mean() < 0.1 * second.var()


@assets
def test_trained_pipeline_shows_the_color_that_it_was_asked_for(trained: WanPipeline) -> None:
    pipe = copy.copy(trained)
    prompts = ["a red circle bounces", "a blue square drifts left"]
    found = pipe(
        prompts,
        height=64,
        width=64,
        num_frames=21,
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="pt",
    ).frames
    assert found.shape == (2, 21, 3, 64, 64)
    for prompt, video in zip(prompts, found, strict=True):
        quality = measure(video.permute(0, 2, 3, 1).float().numpy(), prompt)
        assert quality.color is not None and quality.color > 0.5
        assert quality.shape is not None and quality.shape > 0.5
