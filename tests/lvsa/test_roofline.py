"""Predictions on paper: what is counted is what a kernel would launch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.exchange import get_exchange
from lvsa.hardware import HARDWARE, find_hardware
from lvsa.layout import full_layout, layout_of
from lvsa.roofline import LAUNCH_SECONDS, makespan, predict
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid, Shards
from lvsa.tiles import Tile
from tests.support.errors import refuses

H100 = HARDWARE["h100"]
# A chip without losses but for whole waves and blocks.
CHIP = replace(H100, processors=100, flops=1e15, bandwidth=1e18)


@pytest.mark.parametrize(
    ("work", "processors", "end"),
    [([], 4, 0), ([5], 4, 5), ([5] * 8, 4, 10), ([5] * 9, 4, 15), ([9, 1, 1, 1, 1], 2, 9),
     ([1, 1, 1, 1, 9], 2, 11), ([4, 3, 3, 2], 2, 6)],
)  # fmt: skip
def test_processors_take_the_next_program_when_they_are_done(work, processors, end):
    assert makespan(np.array(work, dtype=np.int64), processors) == end


def test_156_blocks_on_132_processors_are_two_waves():
    """A tile of 1560 queries × 12 heads, 128 queries a block: 13 × 12 = 156."""
    layout = full_layout(1560, 64 * 100)
    found = predict([layout], H100, heads=12, head_dim=128, backend="sdpa")
    assert found.launches == 1
    assert found.kept == pytest.approx(156 / (2 * 132) * 1560 / (13 * 128))


@pytest.mark.parametrize("backend", ["triton", "sdpa", "flashinfer"])
def test_nothing_is_lost_where_all_is_even(backend):
    found = predict(
        [full_layout(128 * 100, 128 * 20)], CHIP, heads=2, head_dim=128, backend=backend
    )
    assert found.kept == pytest.approx(1)
    assert found.flops == 4 * 128 * 2 * (128 * 100) * (128 * 20)
    compute = found.flops / (CHIP.flops * found.rate.share)
    assert found.seconds == pytest.approx(compute + LAUNCH_SECONDS)
    assert found.share == pytest.approx(found.flops / found.seconds / CHIP.flops)


def test_padding_of_rows_keys_and_channels_is_work():
    even = predict([full_layout(12800, 128)], CHIP, heads=1, head_dim=128)
    for queries, keys, D, kept in ((12800 - 64, 128, 128, 0.995), (12800, 65, 128, 65 / 128),
                                   (12800, 128, 96, 0.75)):  # fmt: skip
        found = predict([full_layout(queries, keys)], CHIP, heads=1, head_dim=D)
        assert found.kept == pytest.approx(even.kept * kept)


def test_memory_bounds_what_has_little_to_compute():
    slow = replace(CHIP, bandwidth=1e12)
    found = predict([full_layout(12800, 1)], slow, heads=4, head_dim=64)
    moved = (2 * 12800 + 2 * 1) * 4 * 64 * 2
    assert found.seconds == pytest.approx(moved / 1e12 + LAUNCH_SECONDS)


def test_keys_that_several_tiles_attend_are_read_once_and_gathered_ones_are_copied():
    tiles = [Tile(0, 128, ((0, 64), (128, 192))), Tile(128, 256, ((0, 64), (256, 320)))]
    slow = replace(CHIP, bandwidth=1.0)
    one = predict([layout_of(tiles, 256)], slow, heads=1, head_dim=64)
    assert one.seconds == pytest.approx((2 * 256 + 2 * 192) * 64 * 2, rel=1e-6)
    apart = [tiles[0], Tile(128, 192, ((192, 200), (256, 320)))]
    many = predict([layout_of(apart, 192)], slow, heads=1, head_dim=64, backend="sdpa")
    assert many.launches == 2
    n = sum(tile.n_keys for tile in apart)
    assert many.seconds == pytest.approx((2 * 192 + 2 * n + 4 * n) * 64 * 2, rel=1e-6)


@pytest.mark.parametrize("gpu", HARDWARE)
def test_one_launch_for_all_tiles_loses_less(gpu):
    """Wan 1.3B, 81 latent frames, one rank of 8."""
    pattern = LVSASettings(rotate_keyframes=True).pattern(81, 4, 21)
    plan = get_exchange("needed").plan(Shards(FrameGrid(81, 30, 52), 8), pattern.attended[0], 3)
    layouts = [block.layout for block in plan.blocks]
    tiles, one = (
        predict(layouts, HARDWARE[gpu], heads=12, head_dim=128, backend=backend)
        for backend in ("sdpa", "triton")
    )
    assert one.launches == len(layouts) < tiles.launches
    assert tiles.kept < one.kept < 1
    assert one.seconds < tiles.seconds
    assert one.flops == tiles.flops == 4 * 128 * 12 * plan.pairs


def test_what_there_is_no_model_of():
    layout = full_layout(128, 128)
    assert predict([layout], H100, heads=1, head_dim=64, backend="math") is None
    assert predict([layout], H100, heads=1, head_dim=64, dtype=torch.float32) is None
    nothing = predict([], H100, heads=1, head_dim=64)
    assert nothing.seconds == nothing.share == 0


def test_every_gpu_has_its_source_and_sane_figures():
    for hardware in HARDWARE.values():
        assert "NVIDIA" in hardware.source
        # A dense product of so many bytes each: the ratio lies in the hundreds on all of them.
        assert 100 < hardware.flops / hardware.bandwidth < 500
        assert 0 < math.log10(hardware.flops / hardware.processors / 1e12) < 1.3


def test_hardware_of_a_file(tmp_path):
    file = tmp_path / "gpu.toml"
    file.write_text(
        'name = "Mine"\narchitecture = "sm_90"\nprocessors = 100\nflops = 1e15\n'
        "bandwidth = 1e12\nmemory = 8e10\n"
    )
    assert find_hardware(str(file)).flops == 1e15
    assert find_hardware("H100") is H100
    for text, named in (
        ("name = 1\nspeed = 3", ("processors", "speed")),
        ("=", (str(file),)),
        (file.read_text().replace("sm_90", "sm_70"), ("sm_70", "sm_90")),
        (file.read_text().replace("100", "-1"), ("processors", "-1")),
    ):
        broken = tmp_path / "broken.toml"
        broken.write_text(text)
        with refuses(LVSAError, *(str(broken) if n == str(file) else n for n in named)):
            find_hardware(str(broken))
    with refuses(LVSAError, "h101", *HARDWARE):
        find_hardware("h101")
