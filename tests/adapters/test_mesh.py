"""Whole generations on meshes of two dimensions: each pair, each way of guidance, 4 ranks."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance

import lvsa
from lvsa.adapters.install.guidance import GuidanceParallel
from lvsa.errors import LVSAError
from lvsa.mesh import MeshSizes
from tests.support import tiny_cogvideox, tiny_wan_family
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

PAIRS = [
    {"frames": 2, "heads": 2},
    {"guidance": 2, "frames": 2},
    {"guidance": 2, "heads": 2},
]
SETTINGS = lvsa.LVSASettings(
    window_size=4, n_first_frames=4, key_frame_interval=16, rotate_keyframes=True
)

DEEP = lvsa.LVSASettings(window_size=8, key_frame_interval=32, rotate_keyframes=True)


def settings(kind):
    """For 1.5 in frames of tokens, 8 video frames each."""
    return DEEP if kind == "cogvideox-1.5" else SETTINGS


def wan(pipe, kind, **others):
    """11 latent frames of 12 tokens: cuts fall inside frames."""
    pipe.set_progress_bar_config(disable=True)
    # The pixels of a token are twice as many in TI2V.
    height, width = (96, 128) if kind == "wan-2.2-ti2v" else (48, 64)
    size = {"height": height, "width": width}
    given = {**tiny_wan_family.inputs(kind, 41, **size), **size}
    arguments = {
        "prompt": "a red circle", "negative_prompt": "dull", "num_inference_steps": 3,
        "guidance_scale": 3.0, "output_type": "latent", "max_sequence_length": 32,
        "generator": torch.Generator().manual_seed(0), **given, **others,
    }  # fmt: skip
    return pipe(**arguments).frames


def hunyuan(pipe, kind, **others):
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        "prompt": ["a red circle", "a longer one"], "num_inference_steps": 2,
        "negative_prompt": ["dull"] * 2, "num_frames": 37, "height": 32, "width": 64,
        "output_type": "latent", "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    return pipe(**{**arguments, **others}).frames


def two_experts(pipe, kind, **others):
    return wan_latents(pipe, num_frames=45, height=32, width=64, **others)


KINDS = {
    **{kind: (make, wan) for kind, make in tiny_wan_family.KINDS.items() if kind != "wan-2.1-flf"},
    "wan-2.2-t2v": (lambda: wan_pipeline(two_transformers=True), two_experts),
    "hunyuan": (hunyuan_pipeline, hunyuan),
    "cogvideox-5b": (
        lambda: tiny_cogvideox.cogvideox_pipeline("5b"),
        lambda pipe, kind, **others: tiny_cogvideox.generate(pipe, "5b", 57, **others),
    ),
    "cogvideox-1.5": (
        lambda: tiny_cogvideox.cogvideox_pipeline("1.5"),
        lambda pipe, kind, **others: tiny_cogvideox.generate(pipe, "1.5", 81, **others),
    ),
}


def on_meshes(rank, world, kind):
    make, generate = KINDS[kind]
    results = []
    for sizes in PAIRS:
        pipe = make()
        computed = []
        for model in {pipe.transformer, getattr(pipe, "transformer_2", None) or pipe.transformer}:
            model.proj_out.register_forward_hook(lambda *_: computed.append(1))
        mesh = MeshSizes(**sizes).device_mesh("cpu")
        with lvsa.enable(pipe, settings=settings(kind), mesh=mesh) as session:
            latents = generate(pipe, kind)
            assert not session.attention.pattern.is_dense
        assert "forward" not in vars(pipe.transformer)
        results.append((latents, len(computed)))
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_video_on_every_mesh(kind):
    make, generate = KINDS[kind]
    pipe = make()
    calls = []
    for model in {pipe.transformer, getattr(pipe, "transformer_2", None) or pipe.transformer}:
        model.proj_out.register_forward_hook(lambda *_: calls.append(1))
    with lvsa.enable(pipe, settings=settings(kind)):
        alone = generate(pipe, kind)
    assert len(alone) and alone.isfinite().all()
    for results in run_ranks(4, on_meshes, kind):
        for sizes, (latents, computed) in zip(PAIRS, results, strict=True):
            torch.testing.assert_close(latents, alone, rtol=1e-5, atol=1e-5)
            # Of two calls a step a rank computes one; a batch is cut instead.
            shared = "guidance" in sizes and not kind.startswith("cogvideox")
            assert computed == len(calls) // (2 if shared else 1)


# Words


def one_pass_only(rank, world):
    mesh = MeshSizes(guidance=2).device_mesh("cpu")
    pipe = wan_pipeline()
    with lvsa.enable(pipe, settings=SETTINGS, mesh=mesh):
        with refuses(LVSAError, "guidance", 1, 2):
            wan_latents(pipe, guidance=1.0)
        # It goes on after that.
        latents = wan_latents(pipe)
    with refuses(LVSAError, "ClassifierFreeGuidance", 0.5):
        pipe = hunyuan_pipeline()
        pipe.guider = ClassifierFreeGuidance(guidance_scale=6.0, stop=0.5)
        lvsa.enable(pipe, settings=SETTINGS, mesh=mesh)
    pipe = tiny_cogvideox.cogvideox_pipeline("5b")
    with (
        lvsa.enable(pipe, settings=SETTINGS, mesh=mesh),
        refuses(LVSAError, "guidance", 1, 2),
    ):
        tiny_cogvideox.generate(pipe, "5b", 57, guidance=1.0)
    return latents


def test_guidance_needs_two_passes():
    pipe = wan_pipeline()
    with lvsa.enable(pipe, settings=SETTINGS):
        alone = wan_latents(pipe)
    for latents in run_ranks(2, one_pass_only):
        assert torch.equal(latents, alone)


def another_output(rank, world):
    mesh = MeshSizes(guidance=2).device_mesh("cpu")
    assert mesh is not None
    pipe = wan_pipeline()
    model = pipe.transformer
    model.register_to_config(out_channels=5)
    shared = GuidanceParallel({"transformer": model}, "calls", mesh.get_group("guidance"))
    try:
        with refuses(LVSAError, "WanTransformer3DModel", 4, 5):
            for _ in range(2):
                model(
                    torch.zeros(1, 4, 3, 4, 4), torch.zeros(1), torch.zeros(1, 8, 16)
                )  # fmt: skip
    finally:
        shared.remove()


def test_an_output_of_another_shape_is_named():
    run_ranks(2, another_output)


def heads_that_do_not_divide(rank, world):
    with refuses(LVSAError, 2, 3, "1, 2"):
        lvsa.enable(wan_pipeline(), mesh=MeshSizes(heads=3).device_mesh("cpu"))


def test_heads_that_do_not_divide():
    run_ranks(3, heads_that_do_not_divide)
