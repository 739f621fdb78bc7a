"""The trained pipeline in assets/tiny-wan reconstructs clips and shows what it is asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan import clips

ASSETS = Path(__file__).parents[2] / "assets" / "tiny-wan"


@pytest.fixture(scope="module")
def trained() -> WanPipeline:
    pipe = WanPipeline.from_pretrained(ASSETS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_assets_are_small_and_described() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    weights = [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert not weights and len(list(ASSETS.rglob("*.safetensors"))) == 3
    card = (ASSETS / "README.md").read_text()
    for word in ("Data", "Recipe", "Seed", "Limits"):
        assert word in card


def test_trained_vae_gives_clips_back(trained: WanPipeline) -> None:
    video = clips.render([clips.random_clip(81, np.random.default_rng(77))])
    with torch.no_grad():
        code = trained.vae.encode(video).latent_dist.mode()
        back = trained.vae.decode(code).sample
    # A gray picture of the right brightness has an error of about 0.08.
    assert (back - video).square().mean() < 0.003
    # The first latent frame, of one video frame, is encoded like the others, of four.
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        first, second = trained.vae.encode(still).latent_dist.mode().unbind(dim=2)
    assert (first - second).square().mean() < 0.1 * second.var()


def test_trained_pipeline_shows_the_color_that_it_was_asked_for(trained: WanPipeline) -> None:
    prompts = ["a red circle bounces", "a blue square drifts left"]
    found = trained(
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
