"""Backends by name, and the rule for the one that nobody named."""

from types import SimpleNamespace

import pytest
import torch

from lvsa.backends import BACKENDS, get_backend
from lvsa.backends import choice as module
from lvsa.backends.choice import choose_backend
from lvsa.backends.sdpa import Device
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.layout import layout_of
from lvsa.tiles import Tile
from tests.support.errors import refuses
from tests.support.kernels import TOLERANCE, check, draw_qkv

CPU = torch.device("cpu")
LAYOUT = layout_of((Tile(0, 2, ((0, 3),)), Tile(2, 4, ((1, 4),))), 4)
RUN_HERE = ("auto", "sdpa", "math")


def test_unknown_name_lists_the_known_ones():
    with refuses(LVSAError, "sdap", *BACKENDS):
        get_backend("sdap")


@pytest.mark.parametrize("name", RUN_HERE)
def test_backends_of_any_machine_work(name):
    backend = get_backend(name)
    assert backend.name == name
    q, k, v = draw_qkv(1, 4, 4, 0)
    check(backend.attend(q, k, v, LAYOUT), q, k, v, LAYOUT)
    assert backend.check(CPU, torch.float64, 8).startswith(name)


@pytest.mark.parametrize("name", sorted({*BACKENDS} - {*RUN_HERE, "triton"}))
def test_others_name_the_device_that_they_lack(name):
    with refuses(BackendUnavailable, name, "cpu"):
        get_backend(name)


def test_kernels_after_a_colon():
    assert get_backend("sdpa:flash").kernel == "flash"
    with refuses(LVSAError, "sdpa", "flahs", "flash", "cudnn", "efficient", "fa3", "fa4"):
        get_backend("sdpa:flahs")
    for name in ("auto", "math", "npu"):
        with refuses(LVSAError, name, "flash"):
            get_backend(f"{name}:flash")
    with refuses(LVSAError, "fa9", "fa2", "fa3", "cute-dsl"):
        get_backend("flashinfer:fa9", "cuda")


def test_a_kernel_of_another_device_is_not_substituted():
    backend = get_backend("sdpa:cudnn")
    q, k, v = draw_qkv(1, 4, 4, 0, torch.bfloat16)
    for call in (
        lambda: backend.attend(q, k, v, LAYOUT),
        lambda: backend.check(CPU, torch.bfloat16, 8),
    ):
        with refuses(BackendUnavailable, "sdpa:cudnn", torch.bfloat16, "cpu"):
            call()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_sdpa_runs_on_cpu_and_cuda(device):
    with refuses(BackendUnavailable, "sdpa", device, "math"):
        get_backend("sdpa", device)
    assert get_backend("math", device).name == "math"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_on_the_cpu_auto_has_the_bits_of_sdpa(dtype):
    q, k, v = draw_qkv(2, 4, 4, 0, dtype)
    auto, sdpa = get_backend("auto"), get_backend("sdpa")
    for call in (
        lambda backend: backend.attend(q, k, v, LAYOUT),
        lambda backend: backend.attend_all(q, k, v),
    ):
        for a, b in zip(call(auto), call(sdpa), strict=True):
            assert torch.equal(a, b)
    assert auto.check(CPU, dtype, 8).startswith("auto: sdpa")


BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
A100, H100 = ("cuda", (8, 0), 91900), ("cuda", (9, 0), 91900)
T4, MI300 = ("cuda", (7, 5), 91900), ("cuda", None, 0)
RULE = [
    # device facts, installed, dtype, head dim → backend, and a word of the reason
    (("cpu",), (), BF16, 128, "sdpa", "CPU"),
    (("cpu",), ("triton", "torch_npu"), FP64, 7, "sdpa", "CPU"),
    (A100, ("triton",), BF16, 128, "triton", "sm_80"),
    (A100, (), BF16, 128, "sdpa", "flash"),
    (H100, (), BF16, 128, "sdpa", "cudnn"),
    (A100, ("triton",), FP64, 128, "math", "float64"),
    (A100, ("triton",), BF16, 512, "math", "512"),
    (T4, ("triton",), FP16, 64, "sdpa", "efficient"),
    (T4, ("triton",), BF16, 64, "math", "float16"),
    (MI300, ("triton",), BF16, 128, "sdpa", "AOTriton"),
    (MI300, ("triton",), FP32, 128, "math", "float32"),
    (("npu",), ("torch_npu",), BF16, 128, "npu", "torch_npu"),
    (("npu",), (), BF16, 128, "math", "npu"),
    (("npu",), ("torch_npu",), FP64, 128, "math", "float64"),
    (("mps",), (), FP32, 64, "math", "mps"),
    (("xpu",), ("triton",), BF16, 64, "math", "xpu"),
]


@pytest.mark.parametrize(("facts", "installed", "dtype", "head_dim", "name", "word"), RULE)
def test_the_rule(facts, installed, dtype, head_dim, name, word, monkeypatch):
    monkeypatch.setattr(Device, "of", classmethod(lambda cls, device: Device(*facts)))
    monkeypatch.setattr(module, "find_spec", lambda package: package in installed or None)
    chosen, reason = choose_backend(SimpleNamespace(type=facts[0]), dtype, head_dim)
    assert chosen == name
    assert word in reason


def test_backends_of_other_packages(tmp_path, monkeypatch):
    """Through an entry point; a built-in one of the same name wins."""
    (tmp_path / "outside.py").write_text(
        "from lvsa.backends.plain import MathBackend\n"
        "class Outside(MathBackend):\n    name = 'outside'\n"
        "wrong = 3\n"
    )
    info = tmp_path / "outside-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[lvsa.backends]\noutside = outside:Outside\nwrong = outside:wrong\nsdpa = outside:Outside"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backend = get_backend("outside")
    q, k, v = draw_qkv(1, 4, 4, 0)
    check(backend.attend(q, k, v, LAYOUT), q, k, v, LAYOUT)
    assert get_backend("sdpa").name == "sdpa"
    with refuses(LVSAError, "wrong", 3):
        get_backend("wrong")
    with refuses(LVSAError, "unknown", *BACKENDS, "outside"):
        get_backend("unknown")
