"""SDPA on CUDA without a GPU: the rule by its facts, the calls with fake tensors.

Fake CUDA tensors have shapes, dtypes, strides and devices and no data; operators check them, and
PyTorch's own shape functions say what the kernels would return.
"""

import itertools
import math

import pytest
import torch
from torch.nn import attention

from lvsa.backends import get_backend
from lvsa.backends.sdpa import Device, SDPABackend, choose_kernel
from lvsa.errors import BackendUnavailable
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.layout import full_layout, layout_of
from lvsa.tiles import Tile
from tests.support.errors import refuses
from tests.support.fake_gpu import fake_gpu, on_gpu

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
OLD, NEW = 91500, 91501  # cuDNN: PyTorch prefers it after the first


@pytest.mark.parametrize(
    ("capability", "cudnn", "dtype", "head_dim", "kernel"),
    [
        ((8, 0), NEW, BF16, 128, "flash"),
        ((8, 9), NEW, FP16, 64, "flash"),
        ((9, 0), NEW, BF16, 128, "cudnn"),
        ((9, 0), OLD, BF16, 128, "flash"),
        ((9, 0), 0, BF16, 128, "flash"),
        ((9, 0), NEW, BF16, 256, "flash"),
        ((9, 0), NEW, BF16, 44, "flash"),
        ((10, 0), NEW, FP16, 64, "cudnn"),
        ((10, 3), NEW, FP16, 64, "cudnn"),
        ((12, 0), NEW, FP16, 64, "flash"),
        ((9, 0), NEW, FP32, 128, "efficient"),
        ((7, 5), NEW, FP16, 128, "efficient"),
        ((7, 5), NEW, FP32, 128, "efficient"),
    ],
)
def test_the_rule(capability, cudnn, dtype, head_dim, kernel):
    name, reason = choose_kernel(Device("cuda", capability, cudnn), dtype, head_dim)
    assert name == kernel
    assert reason


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "named"),
    [
        ((7, 5), BF16, 64, ("sm_75", BF16, "float16")),
        ((8, 0), FP64, 64, ("sm_80", FP64, "math")),
        ((8, 0), BF16, 264, ("sm_80", 264, "math")),
    ],
)
def test_what_has_no_kernel_is_an_error(capability, dtype, head_dim, named):
    with refuses(BackendUnavailable, "sdpa", *named):
        choose_kernel(Device("cuda", capability, NEW), dtype, head_dim)


@pytest.mark.parametrize(
    ("asked", "capability", "cudnn", "dtype", "head_dim", "fits"),
    [
        ("flash", (9, 0), NEW, BF16, 128, True),
        ("efficient", (9, 0), NEW, BF16, 128, True),
        ("cudnn", (8, 0), OLD, BF16, 128, True),
        ("cudnn", (8, 0), 0, BF16, 128, False),
        ("cudnn", (9, 0), NEW, FP32, 128, False),
        ("flash", (9, 0), NEW, FP32, 128, False),
        ("flash", (7, 5), NEW, FP16, 128, False),
        ("fa3", (9, 0), NEW, BF16, 128, True),
        ("fa3", (10, 0), NEW, BF16, 128, False),
        ("fa3", (8, 0), NEW, BF16, 128, False),
        ("fa4", (9, 0), NEW, BF16, 128, True),
        ("fa4", (10, 0), NEW, BF16, 128, True),
        ("fa4", (12, 0), NEW, BF16, 128, False),
    ],
)
def test_a_kernel_that_was_named_runs_or_is_refused(
    asked, capability, cudnn, dtype, head_dim, fits
):
    device = Device("cuda", capability, cudnn)
    if fits:
        assert choose_kernel(device, dtype, head_dim, asked)[0] == asked
        return
    with refuses(BackendUnavailable, f"sdpa:{asked}", dtype, head_dim, str(device)):
        choose_kernel(device, dtype, head_dim, asked)


KERNELS = {
    # name → the operator that it calls
    "flash": "flash_attention",
    "cudnn": "cudnn_attention",
    "efficient": "efficient_attention",
}
TILES = {
    "one": [Tile(0, 40, ((0, 70),))],
    "common, a run and others": [
        *(Tile(4 * i, 4 * i + 4, ((0, 5), (6 + 2 * i, 12 + 2 * i))) for i in range(6)),
        Tile(24, 28, ((0, 5), (20, 24), (30, 34))),
        Tile(28, 32, ((0, 5), (22, 26), (50, 54))),
        Tile(32, 40, ((0, 5), (40, 70))),
    ],
    "queries that attend nothing": [Tile(0, 4, ((0, 9),)), Tile(20, 33, ((3, 4), (8, 70)))],
    "nothing": [],
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as its facts go."""

    def make(capability=(9, 0), cudnn=NEW):
        facts = Device("cuda", capability, cudnn)
        monkeypatch.setattr(Device, "of", classmethod(lambda cls, device: facts))

    return make


def fake_qkv(dtype, head_dim, B, packed):
    q, k, v = (torch.empty(B, n, 3, head_dim, device="cuda", dtype=dtype) for n in (40, 70, 70))
    return (q, *unpack_kv(pack_kv(k, v))) if packed else (q, k, v)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "dtype", "head_dim"),
    [
        ("flash", BF16, 64), ("flash", FP16, 12), ("flash", BF16, 256),
        ("cudnn", BF16, 128), ("cudnn", FP16, 64),
        ("efficient", FP32, 64), ("efficient", FP32, 12), ("efficient", FP16, 44),
    ],
)  # fmt: skip
def test_shapes_dtypes_and_devices(gpu, kernel, dtype, head_dim, B, packed, tiles):
    gpu()
    layout = layout_of(TILES[tiles], 40)
    with fake_gpu() as mode:
        q, k, v = fake_qkv(dtype, head_dim, B, packed)
        backend = SDPABackend(kernel)
        state = backend.attend(q, k, v, on_gpu(layout))
        single = backend.attend_all(q, k[:, :1], v[:, :1], state=state)
    for out, lse in (state, single):
        assert out.shape == q.shape
        assert lse.shape == (B, 3, 40)
        assert out.dtype in (dtype, torch.float32)
        assert lse.dtype == torch.float32
        assert out.device.type == lse.device.type == "cuda"
    # One key is none for cuDNN.
    last = KERNELS["flash"] if kernel == "cudnn" else KERNELS[kernel]
    assert mode.operators[-1] == last
    assert {*mode.operators[:-1]} == ({KERNELS[kernel]} if layout.tiles else set())


def test_equal_tiles_share_launches(gpu):
    """Wan 14B, a rank's own shard: a launch for each run, none for each tile."""
    gpu()
    P = 1560
    tiles = [Tile(i * P, (i + 1) * P, ((i * P, (i + 3) * P),)) for i in range(10)]
    layout = layout_of(tiles, 10 * P)
    with fake_gpu() as mode:
        q = torch.empty(1, 10 * P, 40, 128, device="cuda", dtype=BF16)
        k = torch.empty(1, 12 * P, 40, 128, device="cuda", dtype=BF16)
        backend = SDPABackend()
        backend.attend(q, k, k, on_gpu(layout))
    assert mode.operators == ["cudnn_attention"]


def test_kernels_see_aligned_tensors_with_a_contiguous_last_dimension(gpu):
    """What the kernels demand of memory, for all tiles of a block in an exchange's buffer."""
    gpu()
    layout = layout_of(TILES["common, a run and others"], 40)
    with fake_gpu() as mode:
        q, k, v = fake_qkv(BF16, 64, 2, packed=True)
        SDPABackend().attend(q, k, v, on_gpu(layout))
    assert len(mode.inputs) >= 3
    for x in itertools.chain(*mode.inputs):
        assert x.stride(-1) == 1
        offset, *strides = (n * x.element_size() for n in (x.storage_offset(), *x.stride()[:-1]))
        assert math.gcd(16, offset, *strides) == 16


def test_the_rule_is_said(gpu):
    gpu()
    line = get_backend("sdpa", "cuda").check(torch.device("cuda"), BF16, 128)
    assert all(word in line for word in ("sdpa", "cudnn", "sm_90"))
    gpu((8, 0))
    assert "flash" in get_backend("sdpa", "cuda").check(torch.device("cuda"), BF16, 128)


# FlashAttention 3 and 4 in the place of PyTorch's own.


@pytest.mark.skipif(
    not hasattr(attention, "list_flash_attention_impls"), reason="this PyTorch has only its own"
)
def test_flash_attention_3_and_4_name_what_is_missing(gpu):
    gpu()
    assert {"FA3", "FA4"} <= {*attention.list_flash_attention_impls()}
    with refuses(BackendUnavailable, "sdpa:fa3", "flash_attn_interface"):
        get_backend("sdpa:fa3", "cuda")
    with refuses(BackendUnavailable, "sdpa:fa4", "flash_attn.cute.interface"):
        get_backend("sdpa:fa4", "cuda")


def test_an_older_pytorch_is_named(monkeypatch):
    monkeypatch.delattr(attention, "activate_flash_attention_impl", raising=False)
    with refuses(BackendUnavailable, "sdpa:fa3", torch.__version__):
        SDPABackend("fa3")


@pytest.mark.parametrize(("kernel", "name"), [("fa3", "FA3"), ("fa4", "FA4")])
def test_they_are_activated_and_called_through_the_flash_operator(gpu, monkeypatch, kernel, name):
    gpu()
    activated = []
    monkeypatch.setattr(attention, "activate_flash_attention_impl", activated.append, raising=False)
    with fake_gpu() as mode:
        q, k, v = fake_qkv(BF16, 64, 1, False)
        backend = SDPABackend(kernel)
        backend.attend(q, k, v, full_layout(40, 70))
    assert activated == [name]
    assert mode.operators == ["flash_attention"]
    assert backend.check(torch.device("cuda"), BF16, 64).startswith(f"sdpa: {kernel}")
