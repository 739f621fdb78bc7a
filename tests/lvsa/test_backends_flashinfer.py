"""The FlashInfer backend over a stand-in for it; no GPU has run the real one."""

import inspect
import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.backends import flashinfer_backend as module
from lvsa.backends import get_backend
from lvsa.backends.flashinfer_backend import FlashInferBackend, choose_kernel
from lvsa.backends.pages import page_tables
from lvsa.errors import BackendUnavailable
from lvsa.exchange.base import pack_kv, unpack_kv
from lvsa.keyframes import published
from lvsa.layout import full_layout, layout_of
from lvsa.shards import FrameGrid
from lvsa.tiles import Tile
from tests.support import flashinfer_stand_in as stand_in
from tests.support.errors import refuses
from tests.support.flashinfer_wheel import parameters_of
from tests.support.kernels import check, dense, draw_qkv, draw_tensor
from tests.support.layouts import layout_mask, layouts
from tests.support.oracle import relative_error

ROOT = Path(__file__).parents[2]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
D = 64


@pytest.fixture(autouse=True)
def small_workspace(monkeypatch):
    monkeypatch.setattr(module, "WORKSPACE_BYTES", 64)


def backend(capability=AMPERE, kernel=None):
    return FlashInferBackend(stand_in, capability, kernel)


def scaled(layout, factor):
    """The layout with every token become ``factor`` tokens."""
    tiles = [
        Tile(
            tile.start * factor,
            tile.stop * factor,
            tuple((start * factor, stop * factor) for start, stop in tile.keys),
        )
        for tile in layout.tiles
    ]
    return layout_of(tiles, layout.n_queries * factor)


@PROPERTY
@given(
    case=layouts(),
    B=st.integers(1, 2),
    factor=st.sampled_from([1, 3, 8, 12]),
    dtype=st.sampled_from([BF16, FP16]),
    capability=st.sampled_from([AMPERE, HOPPER, BLACKWELL]),
    seed=st.integers(0, 999),
)
def test_equals_dense_attention(case, B, factor, dtype, capability, seed):
    layout, C = case
    layout, C = scaled(layout, factor), C * factor
    q, k, v = draw_qkv(B, layout.n_queries, C, seed, dtype, D)
    check(backend(capability).attend(q, k, v, layout), q, k, v, layout)


@PROPERTY
@given(case=layouts(), factor=st.integers(1, 20))
def test_pages_hold_the_attended_tokens_and_no_other(case, factor):
    layout, C = case
    layout, C = scaled(layout, factor), C * factor
    if not layout.tiles:
        return
    tables = page_tables(layout)
    assert tables.page == math.gcd(128, *(n for t in layout.tiles for r in t.keys for n in r))
    starts = tables.page_starts.tolist()
    mask = np.zeros((layout.n_queries, C), dtype=bool)
    for i, last in enumerate(tables.last_page_tokens.tolist()):
        rows = slice(*tables.query_starts[i : i + 2].tolist())
        for position, page in enumerate(tables.pages[starts[i] : starts[i + 1]].tolist()):
            is_last = position == starts[i + 1] - starts[i] - 1
            first = page * tables.page
            mask[rows, first : first + (last if is_last else tables.page)] = True
    for start, stop in tables.unattended:
        assert mask[start:stop].sum() == stop - start, "one key for want of none"
        mask[start:stop] = False
    assert np.array_equal(mask, layout_mask(layout, C).numpy())


@pytest.mark.parametrize(("P", "page"), [(1560, 8), (3600, 16), (1350, 2), (880, 16), (256, 128)])
def test_pages_of_whole_frames(P, page):
    tiles = [Tile(0, P, ((0, P), (3 * P, 5 * P))), Tile(P, 2 * P, ((P, 3 * P),))]
    tables = page_tables(layout_of(tiles, 2 * P))
    assert tables.page == page
    assert len(tables.pages) * page == 5 * P


def test_shards_that_cut_frames_anywhere_take_smaller_pages():
    tables = page_tables(layout_of([Tile(0, 64, ((0, 64), (99, 128)))], 64))
    assert tables.page == 1
    assert tables.pages.tolist() == [*range(64), *range(99, 128)]


def test_unattended_queries_stay_without_keys_though_the_buffer_is_poisoned():
    layout = layout_of([Tile(8, 16, ((8, 16),))], 24)
    q, k, v = draw_qkv(1, 24, 16, 0, BF16, D)
    k[:, :8] = v[:, :8] = math.nan
    out, lse = backend().attend(q, k, v, layout)
    assert torch.equal(
        lse == -math.inf, torch.tensor([[[True] * 8 + [False] * 8 + [True] * 8] * 2])
    )
    assert (out[:, :8] == 0).all() and (out[:, 16:] == 0).all()
    clean = draw_qkv(1, 24, 16, 0, BF16, D)
    expected = dense(*clean, layout).out_BLHD
    assert relative_error(out[:, 8:16], expected[:, 8:16]) < 1.5e-2


@pytest.mark.parametrize("capability", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize("B", [1, 2])
def test_any_strides(capability, B):
    tiles = (Tile(0, 8, ((0, 24),)), Tile(8, 32, ((0, 16), (24, 40))))
    layout = layout_of(tiles, 32)
    fused = draw_tensor(B, 40, 0, BF16, 3 * D)
    q, k, v = fused.chunk(3, dim=-1)
    q = q[:, :32]
    check(backend(capability).attend(q, k, v, layout), q, k, v, layout)
    k_view, v_view = unpack_kv(pack_kv(k, v))
    check(backend(capability).attend(q, k_view, v_view, layout), q, k, v, layout)
    # Values that a model laid out otherwise than its keys.
    v_other = v.transpose(1, 2).contiguous().transpose(1, 2)
    check(backend(capability).attend(q, k, v_other, layout), q, k, v, layout)


def test_the_buffer_is_read_in_place(monkeypatch):
    """Keys and values of an exchange are given to the kernel as they stand."""
    layout = layout_of([Tile(0, 8, ((0, 16), (24, 32))), Tile(8, 16, ((8, 32),))], 16)
    q, k, v = draw_qkv(1, 16, 33, 0, BF16, D)
    k, v = unpack_kv(pack_kv(k, v))
    seen = []
    run = stand_in.BatchPrefillWithPagedKVCacheWrapper.run

    def watching(self, q, cache, **options):
        seen.extend((q, *cache))
        return run(self, q, cache, **options)

    monkeypatch.setattr(stand_in.BatchPrefillWithPagedKVCacheWrapper, "run", watching)
    backend().attend(q, k, v, layout)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (q, k, v)]
    assert seen[1].shape == (4, 8, 2, D), "33 tokens hold four pages of eight"


def test_a_layout_is_planned_once_for_all_layers(monkeypatch):
    plans = []
    plan = stand_in.BatchPrefillWithPagedKVCacheWrapper.plan

    def counting(self, *args, **options):
        plans.append(self)
        return plan(self, *args, **options)

    monkeypatch.setattr(stand_in.BatchPrefillWithPagedKVCacheWrapper, "plan", counting)
    kernel = backend()
    one, other = (layout_of([Tile(0, 8, ((0, n),))], 8) for n in (8, 16))
    q, k, v = draw_qkv(1, 8, 16, 0, BF16, D)
    for _ in range(3):
        for layout in (one, other):
            check(kernel.attend(q, k, v, layout), q, k, v, layout)
        check(kernel.attend_all(q, k, v), q, k, v, full_layout(8, 16))
    assert len(plans) == 3
    assert [wrapper.runs for wrapper in plans] == [3, 3, 3]
    assert len({wrapper.workspace.data_ptr() for wrapper in plans}) == 1, "scratch is shared"
    # Another scale, dtype or head count is another plan.
    kernel.attend(q, k, v, one, 0.5)
    kernel.attend(*(x.to(FP16) for x in (q, k, v)), one)
    kernel.attend(*(x[:, :, :1] for x in (q, k, v)), one)
    assert len(plans) == 6


def test_layouts_that_died_leave_their_place_to_none():
    """New objects get the addresses of old ones."""
    kernel = backend()
    q, k, v = draw_qkv(1, 8, 16, 0, BF16, D)
    for i in range(12):
        layout = layout_of([Tile(0, 8, ((i, i + 3),))], 8)
        check(kernel.attend(q, k, v, layout), q, k, v, layout)
        del layout


def test_old_plans_go(monkeypatch):
    monkeypatch.setattr(module, "PLANS_KEPT", 2)
    kernel = backend()
    q, k, v = draw_qkv(1, 8, 16, 0, BF16, D)
    layouts = [layout_of([Tile(0, 8, ((0, n),))], 8) for n in (4, 8, 12, 16)]
    for layout in (*layouts, *layouts):
        check(kernel.attend(q, k, v, layout), q, k, v, layout)
        assert len(kernel._plans) <= 2


def test_states_merge_and_scale_counts():
    layout = full_layout(8, 16)
    q, k, v = draw_qkv(1, 8, 32, 0, BF16, D)
    kernel = backend()
    state = kernel.attend(q, k[:, :16], v[:, :16], layout, 0.3, None, True)
    state = kernel.attend_all(q, k[:, 16:], v[:, 16:], 0.3, state)
    check(state, q, k, v, full_layout(8, 32), 0.3)
    empty = kernel.attend(q, k, v, layout_of([], 8), None, state)
    assert empty is state
    out, lse = kernel.attend_all(q, k[:, :0], v[:, :0])
    assert (out == 0).all() and (lse == -math.inf).all()


def test_a_whole_engine():
    """Every offset of a rotating pattern, on one process."""
    from lvsa.attention import LVSAttention

    pattern = published(9, interval=4, window=1, rotate=True)
    grid = FrameGrid(9, 2, 4)
    q, k, v = draw_qkv(1, 72, 72, 0, BF16, D)
    engine = LVSAttention(pattern, grid, backend=backend(HOPPER))
    reference = LVSAttention(pattern, grid, backend="math")
    for step in range(pattern.n_offsets):
        engine.step = reference.step = step
        assert relative_error(engine(q, k, v)[0], reference(q, k, v)[0]) < 1e-2
    line = engine.backend.check(q.device, BF16, D)
    assert line.startswith("flashinfer 0.6.18: fa3")
    assert line.endswith("so far fa3")


# The rule for the kernel.


@pytest.mark.parametrize(
    ("capability", "head_dim", "page", "kernel"),
    [
        (AMPERE, 128, 16, "fa2"),
        ((8, 9), 64, 1, "fa2"),
        (HOPPER, 128, 1, "fa3"),
        (HOPPER, 256, 16, "fa3"),
        (BLACKWELL, 128, 8, "cute-dsl"),
        ((10, 3), 64, 128, "cute-dsl"),
        (BLACKWELL, 128, 4, "fa2"),
        (BLACKWELL, 256, 16, "fa2"),
        ((12, 0), 128, 16, "fa2"),
    ],
)
def test_the_rule(capability, head_dim, page, kernel):
    name, reason = choose_kernel(capability, BF16, head_dim, page)
    assert name == kernel
    assert reason
    assert choose_kernel(capability, BF16, head_dim, page, "fa2")[0] == "fa2"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "page", "asked", "named"),
    [
        (AMPERE, FP32, 128, 8, None, (FP32, "bfloat16")),
        (AMPERE, BF16, 96, 8, None, (96, 64, 128, 256)),
        ((7, 5), FP16, 64, 8, None, ("sm_80", "sm_75")),
        (AMPERE, BF16, 128, 8, "fa3", ("flashinfer:fa3", "sm_80", "fa2")),
        (BLACKWELL, BF16, 128, 2, "cute-dsl", ("flashinfer:cute-dsl", 2, "fa2")),
    ],
)
def test_what_does_not_fit_is_an_error(capability, dtype, head_dim, page, asked, named):
    with refuses(BackendUnavailable, *named):
        choose_kernel(capability, dtype, head_dim, page, asked)


def test_blocks_that_no_page_of_the_named_kernel_fits_are_an_error():
    q, k, v = draw_qkv(1, 4, 9, 0, BF16, D)
    with refuses(BackendUnavailable, "cute-dsl", 1, "fa2"):
        backend(BLACKWELL, "cute-dsl").attend(q, k, v, full_layout(4, 9))
    check(backend(BLACKWELL).attend(q, k, v, full_layout(4, 9)), q, k, v, full_layout(4, 9))


# What is installed.


@pytest.fixture
def nvidia(monkeypatch):
    """A machine with an NVIDIA GPU and any FlashInfer, as far as the checks go."""

    def make(version):
        library = SimpleNamespace(__version__=version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER)
        monkeypatch.setattr(module, "import_module", lambda name: library)

    return make


@pytest.mark.parametrize("version", ["0.6.18", "0.6.18.post1", "0.7.2", "0.7.0rc1"])
def test_versions_that_fit(nvidia, version):
    nvidia(version)
    found = get_backend("flashinfer", "cuda")
    assert found.capability == HOPPER
    assert "fa3" in found.check(torch.device("cuda"), BF16, 128)
    assert version in found.check(torch.device("cuda"), BF16, 128)
    assert get_backend("flashinfer:fa2", "cuda").kernel == "fa2"


@pytest.mark.parametrize("version", ["0.6.17", "0.2.14.post1", "0.8.0", "1.0"])
def test_versions_that_do_not_are_named(nvidia, version):
    nvidia(version)
    with refuses(BackendUnavailable, version, "0.6.18", "0.8", "lvsa-launcher[flashinfer]"):
        get_backend("flashinfer", "cuda")


def test_the_extra_asks_for_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["flashinfer"]
    since, before = (".".join(map(str, version)) for version in (module.SINCE, module.BEFORE))
    assert wanted == f"flashinfer-python>={since},<{before}"


def test_without_flashinfer_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(module, "import_module", missing)
    with refuses(BackendUnavailable, "lvsa-launcher[flashinfer]", "0.6.18"):
        get_backend("flashinfer", "cuda")


def test_amd_is_not_nvidia(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with refuses(BackendUnavailable, "flashinfer", "NVIDIA"):
        get_backend("flashinfer", "cuda")


@pytest.mark.parametrize("method", ["__init__", "plan", "run"])
def test_the_stand_in_has_the_signatures_of_the_package(method):
    """Every parameter of the stand-in, under the same name, in the same place and default."""
    written = inspect.unwrap(getattr(stand_in.BatchPrefillWithPagedKVCacheWrapper, method))
    real, ours = parameters_of(method), inspect.signature(written).parameters
    assert {*ours} <= {*real}
    for name, parameter in ours.items():
        assert real[name].kind == parameter.kind
        assert real[name].default == parameter.default
    positional = [n for n, p in ours.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    needed = [n for n in positional if ours[n].default is inspect.Parameter.empty]
    assert [*real][: len(needed)] == needed
