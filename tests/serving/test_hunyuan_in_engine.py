"""HunyuanVideo 1.5 in the real engine: text in the attention, grid and step from our hook."""

import pytest
import torch
from diffusers import HunyuanVideo15Pipeline

from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid
from tests.serving.support import engines
from tests.serving.support.engines import GUIDANCE, STEPS, engine, install_lvsa, watched_layers
from tests.support.oracle import relative_error
from tests.support.tiny_hunyuan import hunyuan_pipeline, hunyuan_transformer

pytestmark = pytest.mark.vllm_omni
FRAMES, HEIGHT, WIDTH = 49, 32, 48
LAYERS = 2
SPARSE = {"horizon": 5, "window_size": 4, "rotate_keyframes": True}
VISION = 1152
"""Channels of image embeddings, fixed in the engine's pipeline."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model whose transformer takes the image embeddings that the engine makes."""
    pipe = hunyuan_pipeline()
    torch.manual_seed(1)
    transformer = hunyuan_transformer(task_type="t2v", image_embed_dim=VISION)
    pipe.register_modules(transformer=transformer.eval())
    folder = tmp_path_factory.mktemp("hunyuan")
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def noise():
    shape = (1, 4, (FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def latents(checkpoint, monkeypatch):
    """Latents that an engine with these options ends with, and the calls of its layers."""
    from vllm_omni.diffusion.models.hunyuan_video import pipeline_hunyuan_video_1_5 as model
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    monkeypatch.setattr(engines, "MODEL", str(checkpoint))
    step = model.HunyuanVideo15Pipeline.scheduler_step_maybe_with_cfg
    after = []

    def noted(*args, **kwargs):
        after.append(step(*args, **kwargs))
        return after[-1]

    monkeypatch.setattr(model.HunyuanVideo15Pipeline, "scheduler_step_maybe_with_cfg", noted)

    def run(options=None, **more):
        parameters = OmniDiffusionSamplingParams(
            num_frames=FRAMES,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            guidance_scale_provided=True,
            latents=noise(),
        )
        with watched_layers() as calls, engine(options, **more) as omni:
            calls.clear()
            omni.generate({"prompt": engines.PROMPT, "negative_prompt": "dull"}, parameters)
        return after[-1], list(calls)

    return run


def ours(checkpoint, settings):
    """Latents of diffusers' pipeline under LVSA."""
    pipe = HunyuanVideo15Pipeline.from_pretrained(checkpoint)
    pipe.guider = type(pipe.guider)(guidance_scale=GUIDANCE)
    install_lvsa(pipe, FrameGrid((FRAMES - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16), settings)
    return pipe(
        prompt=engines.PROMPT,
        negative_prompt="dull",
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        latents=noise(),
        output_type="latent",
    ).frames


def test_with_every_frame_kept_it_is_the_engines_dense_result(latents):
    dense, _ = latents(dense=True)
    kept, _ = latents({"sparsity_scale": 100.0})
    assert relative_error(kept, dense) < 1e-4
    sparse, calls = latents(SPARSE)
    assert relative_error(sparse, dense) > 1e-3
    assert [step for _, step, _, _ in calls] == [
        step for step in range(STEPS) for _ in range(2 * LAYERS)
    ]


def test_sparse_it_is_our_own_pipelines(latents, checkpoint):
    sparse, _ = latents(SPARSE)
    assert relative_error(sparse, ours(checkpoint, LVSASettings(**SPARSE))) < 5e-4
