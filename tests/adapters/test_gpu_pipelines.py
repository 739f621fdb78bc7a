"""Whole tiny pipelines on a CUDA device against the CPU. Run by ``make gpu``."""

import copy

import pytest
import torch

import lvsa
from tests.support import tiny_cogvideox, tiny_hunyuan, tiny_wan_family
from tests.support.oracle import relative_error
from tests.support.tiny import wan_latents, wan_pipeline

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SETTINGS = lvsa.LVSASettings(
    window_size=4, n_first_frames=4, key_frame_interval=16, rotate_keyframes=True
)


def of_wan(pipe, **size):
    return wan_latents(pipe, **size)


def of_skyreels(pipe, **size):
    return wan_latents(pipe, **size)


def of_hunyuan(pipe, **size):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=["a red circle"], negative_prompt=["dull"], num_inference_steps=2,
        output_type="latent", generator=torch.Generator().manual_seed(0), **size,
    ).frames  # fmt: skip


def of_cogvideox(pipe, num_frames, height, width):
    size = {"height": height, "width": width}
    return tiny_cogvideox.generate(pipe, "5b", num_frames, size=size)


FAMILIES = {
    # name → pipeline, its generation, the video's size
    "wan": (wan_pipeline, of_wan, (45, 32, 48)),
    "skyreels": (tiny_wan_family.skyreels, of_skyreels, (45, 32, 48)),
    "hunyuan15": (tiny_hunyuan.hunyuan_pipeline, of_hunyuan, (37, 32, 48)),
    "cogvideox": (lambda: tiny_cogvideox.cogvideox_pipeline("5b"), of_cogvideox, (97, 32, 96)),
}


@pytest.mark.parametrize("backend", ["auto", "triton", "math"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_generation_equals_the_one_on_the_cpu(family, backend):
    make, generate, (num_frames, height, width) = FAMILIES[family]
    torch.manual_seed(0)
    here = make()
    there = copy.deepcopy(here).to(DEVICE)
    size = {"num_frames": num_frames, "height": height, "width": width}

    def sparse(pipe, backend):
        with lvsa.enable(pipe, **size, settings=SETTINGS, backend=backend) as session:
            assert not session.attention.pattern.is_dense
            return generate(pipe, **size)

    expected = sparse(here, "math")
    got = sparse(there, backend)
    assert torch.isfinite(got).all()
    # Steps multiply what float32 rounds differently.
    assert relative_error(got.cpu(), expected) < 1e-2
