"""Whole sharded forwards of every family at full size, on a GPU that is not there.

Fake CUDA tensors have shapes, dtypes, strides and devices and no data: a device or a dtype that is
mixed up, a buffer of the wrong shape, a wait for the device show all the same.
"""

from dataclasses import replace

import pytest
import torch

from lvsa.adapters.wan import WanAdapter
from lvsa.rope import apply_rotary_1d
from lvsa.settings import LVSASettings
from lvsa.studies.bench.fake_forward import fake_forward
from lvsa.studies.bench.fake_gpu import triton_launches
from lvsa.studies.bench.models import MODELS
from tests.support.strict import Strict

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WAN, COGVIDEOX = MODELS["wan-14b"], MODELS["cogvideox-5b"]
I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
FAMILIES = {
    "wan 1.3B": MODELS["wan-1.3b"],
    "wan 14B": WAN,
    "wan 14B I2V": replace(WAN, config={**WAN.config, **I2V}),
    "wan 14B first and last": replace(WAN, config={**WAN.config, **I2V, "pos_embed_seq_len": 514}),
    "wan 14B VACE": replace(
        WAN,
        transformer="WanVACETransformer3DModel",
        config={**WAN.config, "vace_layers": [0], "vace_in_channels": 96},
    ),
    "skyreels 14B": replace(WAN, adapter="skyreels", transformer="SkyReelsV2Transformer3DModel"),
    "hunyuan15": MODELS["hunyuan15"],
    "cogvideox 5B": COGVIDEOX,
    "cogvideox 2B": replace(COGVIDEOX, heads=30, config={"num_attention_heads": 30}),
    "cogvideox 1.5": replace(
        COGVIDEOX,
        rows=48,
        columns=85,
        config={
            **COGVIDEOX.config,
            "patch_size_t": 2,
            "patch_bias": False,
            "sample_height": 96,
            "sample_width": 170,
        },
    ),
}
T = 40
"""Latent frames: sparse for every family."""


def run(size, *, adapter=None, rank=3, world=8, dtype=BF16, T=T, capability=(9, 0), **names):
    """One rank's forward under `Strict`; the output, the rules' notes and the latents' shape."""
    grid = size.grid(T)
    settings = LVSASettings(rotate_keyframes=True)
    strict = Strict(dtype)
    with fake_forward(
        size.build(2, dtype),
        adapter or size.adapter,
        settings.pattern(T, size.temporal_factor, size.horizon),
        grid,
        rank=rank,
        world=world,
        dtype=dtype,
        capability=capability,
        **names,
    ) as forward:
        whole = forward.inputs["hidden_states"].shape
        # Before the blocks models do as they like.
        forward.blocks[0].register_forward_pre_hook(lambda *_: setattr(strict, "holds", True))
        forward.blocks[-1].register_forward_hook(lambda *_: setattr(strict, "holds", False))
        with triton_launches(strict.triton), strict:
            out = forward()
    assert out.is_cuda and out.dtype == dtype
    channels = 2 if size.adapter == "cogvideox" else 1
    assert [*out.shape[:channels], *out.shape[channels + 1 :]] == [
        *whole[:channels],
        *whole[channels + 1 :],
    ]
    return strict


@pytest.mark.parametrize("backend", ["triton", "sdpa:flash", "sdpa:cudnn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_of_one_rank_of_eight(family, backend):
    found = run(FAMILIES[family], backend=backend)
    kernel = {"triton": "attend_strips"}.get(backend, f"{backend[5:]}_attention")
    assert any(kernel in name for name in found.attention)
    assert BF16 in found.exchanged


@pytest.mark.parametrize("exchange", ["needed", "ring", "all_gather"])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2), (3, 5), (15, 16)])
@pytest.mark.parametrize("family", ["wan 1.3B", "hunyuan15"])
def test_ranks_and_exchanges(family, rank, world, exchange):
    # The shards of five and sixteen ranks cut frames.
    found = run(FAMILIES[family], rank=rank, world=world, exchange=exchange, T=48)
    assert found.attention


@pytest.mark.parametrize(
    ("dtype", "capability", "backend"),
    [
        (FP16, (8, 0), "sdpa"),
        (FP16, (7, 5), "sdpa"),
        (FP32, (8, 9), "sdpa"),
        (FP32, (9, 0), "triton"),
        (BF16, (10, 0), "auto"),
        (BF16, (12, 0), "auto"),
    ],
)
@pytest.mark.parametrize("family", ["wan 1.3B", "hunyuan15", "cogvideox 5B"])
def test_dtypes_and_gpus(family, dtype, capability, backend):
    found = run(FAMILIES[family], dtype=dtype, capability=capability, backend=backend)
    assert found.exchanged


def test_the_slow_backend_that_always_works():
    run(FAMILIES["wan 1.3B"], backend="math", capability=(7, 5))


# What these tests are for.


class _Float32Keys(WanAdapter):
    def apply_rotary(self, q, k, rotary_emb, local_seq, rank, world):
        q, k = apply_rotary_1d(q, k, rotary_emb, local_seq, rank, world)
        return q, k.float()


class _RotatedOnTheCPU(WanAdapter):
    def apply_rotary(self, q, k, rotary_emb, local_seq, rank, world):
        table = tuple(torch.empty(x.shape, dtype=x.dtype) for x in rotary_emb)
        return apply_rotary_1d(q, k, table, local_seq, rank, world)


@pytest.mark.parametrize("backend", ["triton", "sdpa:flash"])
def test_a_dtype_that_is_mixed_up_shows(backend):
    with pytest.raises(AssertionError, match="float32"):
        run(FAMILIES["wan 1.3B"], adapter=_Float32Keys(), backend=backend)


@pytest.mark.parametrize("backend", ["triton", "sdpa:flash"])
def test_a_device_that_is_mixed_up_shows(backend):
    with pytest.raises((AssertionError, RuntimeError), match="cpu"):
        run(FAMILIES["wan 1.3B"], adapter=_RotatedOnTheCPU(), backend=backend)
