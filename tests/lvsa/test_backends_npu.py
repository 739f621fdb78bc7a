"""The NPU backend over a stand-in for torch_npu; no NPU has run the real one."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.backends import ascend as module
from lvsa.backends.ascend import AscendBackend
from lvsa.errors import BackendUnavailable, LVSAError
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.layout import full_layout
from tests.support import torch_npu_stand_in as stand_in
from tests.support.errors import refuses
from tests.support.kernels import check, draw_qkv
from tests.support.layouts import layouts

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NPU = SimpleNamespace(type="npu")  # torch knows this type of device with torch_npu alone


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=layouts(),
    B=st.integers(1, 2),
    dtype=st.sampled_from([BF16, FP16, FP32]),
    head_dim=st.sampled_from([8, 16, 64]),
    packed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_dense_attention(case, B, dtype, head_dim, packed, seed):
    layout, C = case
    q, k, v = draw_qkv(B, layout.n_queries, C, seed, dtype, head_dim)
    if packed:
        k, v = unpack_kv(pack_kv(k, v))
    check(AscendBackend(stand_in).attend(q, k, v, layout), q, k, v, layout)
    check(AscendBackend(stand_in).attend(q, k, v, layout, 0.4), q, k, v, layout, 0.4)


def test_merges_into_a_running_state():
    q, k, v = draw_qkv(2, 6, 12, 0, BF16, 16)
    backend = AscendBackend(stand_in)
    state = backend.attend_all(q, k[:, :5], v[:, :5], more=True)
    state = backend.attend_all(q, k[:, 5:], v[:, 5:], state=state)
    check(state, q, k, v, full_layout(6, 12))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "operator"),
    [
        (BF16, 128, "npu_fused_infer_attention_score"),
        (FP16, 64, "npu_fused_infer_attention_score"),
        (BF16, 72, "npu_fusion_attention"),
        (FP32, 128, "npu_fusion_attention"),
    ],
)
def test_the_operator(dtype, head_dim, operator):
    called = []

    def noting(name):
        def call(*args, **options):
            called.append(name)
            return getattr(stand_in, name)(*args, **options)

        return call

    names = ("npu_fused_infer_attention_score", "npu_fusion_attention")
    backend = AscendBackend(SimpleNamespace(**{name: noting(name) for name in names}))
    q, k, v = draw_qkv(1, 4, 6, 0, dtype, head_dim)
    check(backend.attend(q, k, v, full_layout(4, 6)), q, k, v, full_layout(4, 6))
    assert called == [operator]
    assert operator in backend.check(NPU, dtype, head_dim)


def test_float64_has_no_kernel():
    q, k, v = draw_qkv(1, 4, 6, 0, FP64, 16)
    backend = AscendBackend(stand_in)
    for call in (
        lambda: backend.attend(q, k, v, full_layout(4, 6)),
        lambda: backend.check(NPU, FP64, 16),
    ):
        with refuses(BackendUnavailable, "npu", FP64, "math"):
            call()


def test_what_it_needs_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    with refuses(BackendUnavailable, "npu", "cuda"):
        AscendBackend.on(torch.device("cuda"))
    with refuses(LVSAError, "npu", "flash"):
        AscendBackend.on(NPU, "flash")
    monkeypatch.setattr(module, "import_module", missing)
    with refuses(BackendUnavailable, "npu", "torch_npu"):
        AscendBackend.on(NPU)
    monkeypatch.setattr(module, "import_module", lambda name: stand_in)
    assert AscendBackend.on(NPU).library is stand_in
