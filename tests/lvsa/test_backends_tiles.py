"""Tiles in shared calls: the same result, few copies, few calls."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsa.backends import tile_by_tile as module
from lvsa.backends.sdpa import SDPABackend
from lvsa.backends.tile_by_tile import TileBackend
from lvsa.layout import layout_of
from lvsa.tiles import Tile
from tests.support.kernels import D, H, check, draw_qkv
from tests.support.layouts import layouts
from tests.support.memory import KeyValueMemory

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


class Counted(TileBackend):
    """SDPA that notes the shapes of its calls, [batch, queries, keys]."""

    name = "counted"

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def kernel_for(self, q_BLHD):
        kernel = SDPABackend().kernel_for(q_BLHD)

        def counting(q, k, v, scale):
            self.calls.append((q.shape[0], q.shape[1], k.shape[1]))
            return kernel(q, k, v, scale)

        return counting


@PROPERTY
@given(case=layouts(), seed=st.integers(0, 999))
def test_tiles_in_one_call_equal_tiles_one_by_one(case, seed):
    layout, C = case
    q, k, v = draw_qkv(2, layout.n_queries, C, seed)
    batched = SDPABackend().attend(q, k, v, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMALL_TILE_WORK", {"cpu": 0})
        one_by_one = SDPABackend().attend(q, k, v, layout)
    torch.testing.assert_close(batched, one_by_one, rtol=1e-12, atol=1e-12)


def sliding(n, queries=2, keys=3, step=1, first=0):
    """Windows that move with their queries."""
    return [
        Tile(first + i * queries, first + (i + 1) * queries, ((i * step, i * step + keys),))
        for i in range(n)
    ]


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("gap", [False, True])
def test_evenly_spaced_tiles_take_one_call_and_no_copy(B, step, gap):
    tiles = sliding(6, step=step)
    if gap:
        tiles = tiles[::2]
    # A tile of another shape, so that keys that all share are no common range.
    tiles.append(Tile(12, 15, ((30, 31),)))
    layout = layout_of(tiles, 15)
    q, k, v = draw_qkv(B, 15, 31, 0, torch.float32)
    backend = Counted()
    with KeyValueMemory(k, v) as memory:
        got = backend.attend(q, k, v, layout)
    check(got, q, k, v, layout)
    assert memory.peak == 0
    assert backend.calls == [(len(tiles) - 1, 2, 3)] * B + [(B, 3, 1)]


def test_strides_of_an_exchange_buffer():
    tiles = [*sliding(4), Tile(8, 9, ((0, 1), (5, 6)))]
    layout = layout_of(tiles, 9)
    q, k, v = draw_qkv(2, 9, 8, 0, torch.float32)
    buffer = torch.stack([k, v], dim=2).transpose(0, 1).contiguous()  # [C, B, 2, H, D]
    k_view, v_view = (x.transpose(0, 1) for x in buffer.unbind(2))
    assert k_view.stride(1) > k_view.stride(0)
    check(Counted().attend(q, k_view, v_view, layout), q, k, v, layout)


def test_common_keys_take_one_call_for_all_queries():
    tiles = [
        Tile(2 * i, 2 * i + 2, ((0, 3), (4 + 3 * i, 6 + 3 * i), (7 + 3 * i, 8 + 3 * i)))
        for i in range(5)
    ]
    layout = layout_of(tiles, 10)
    q, k, v = draw_qkv(1, 10, 20, 0, torch.float32)
    backend = Counted()
    check(backend.attend(q, k, v, layout), q, k, v, layout)
    # The others have two ranges each, and are small: gathered into one call.
    assert backend.calls == [(1, 10, 3), (5, 2, 3)]


def test_copies_stay_below_the_limit():
    tiles = tuple(Tile(i, i + 1, ((i, i + 1), (i + 2, i + 4))) for i in range(40))
    layout = layout_of(tiles, 40)
    q, k, v = draw_qkv(1, 40, 44, 0, torch.float32)
    of_one_tile = 2 * 3 * H * D * 4
    for n in (1, 5, 40):
        with KeyValueMemory(k, v) as memory:
            SDPABackend(gather_bytes=n * of_one_tile).attend(q, k, v, layout)
        assert memory.peak == n * of_one_tile
