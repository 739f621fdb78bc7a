"""Whole tiny pipelines on a CUDA device against the CPU. Run by ``make gpu``."""

import copy

import pytest
import torch
from torch import distributed as dist

import lvsa
from lvsa.launch.tuning.prepare import compile_blocks
from lvsa.launch.tuning.sharding import drop, shard
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


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, with NCCL."""
    device = torch.device(DEVICE, torch.cuda.current_device())
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1, device_id=device
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_that_fsdp_gathers_make_the_same_video_and_leave(one_rank, compiled):
    """One rank gathers from itself: hooks, streams, memory and compiled blocks as with several."""
    torch.manual_seed(0)
    pipe = wan_pipeline().to(DEVICE)
    size = {"num_frames": 45, "height": 32, "width": 48}
    with lvsa.enable(pipe, **size, settings=SETTINGS):
        expected = wan_latents(pipe, **size)
    if compiled:
        compile_blocks({"transformer": pipe.transformer})
    shard(pipe.transformer, one_rank, DEVICE, whole=True)
    shard(pipe.text_encoder, one_rank, DEVICE, whole=False)
    with lvsa.enable(pipe, **size, settings=SETTINGS):
        got = wan_latents(pipe, **size)
    assert relative_error(got, expected) < 1e-3
    before = torch.cuda.memory_allocated()
    weights = sum(x.nbytes for x in pipe.transformer.parameters())
    drop(pipe.transformer)
    assert before - torch.cuda.memory_allocated() >= 0.9 * weights > 0
