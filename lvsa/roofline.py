"""How long attention would take on a GPU, on paper: a prediction, not a measurement.

A kernel is programs of so many queries, each over the keys that they attend in blocks of so many;
processors take the next program when they are done with one, in the order of the launch. Counted
are the rows and keys that only fill blocks, the processors that wait for the last programs, bytes
over the memory's bandwidth, and a launch's own time. A processor does its share of the chip's rate
times what the kernel was published to reach on long dense sequences.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lvsa.backends.triton_shapes import GENERATIONS, padded, shape_for
from lvsa.hardware import Hardware
from lvsa.layout import BlockLayout, full_layout
from lvsa.pattern import Ints
from lvsa.tiles import Tile

LAUNCH_SECONDS = 4e-6
"""A launch and the gap before it."""
FLASH = (128, 64)
"""Queries × keys of a program of FlashAttention 2, at head dimensions up to 128."""


@dataclass(frozen=True)
class Rate:
    """Share of the chip's rate that a kernel reaches where nothing is lost, and who says so."""

    share: float
    source: str


FA2_AMPERE = Rate(0.73, "FlashAttention-2, arXiv 2307.08691: up to 73 % of an A100")
FA2_HOPPER = Rate(0.35, "FlashAttention-3, arXiv 2407.08608: FlashAttention-2 reaches 35 % there")
FA3_HOPPER = Rate(0.75, "FlashAttention-3, arXiv 2407.08608: up to 75 % of an H100")
# Kernel, generation → rate. What nobody has published takes FlashAttention 2's of its generation.
RATES = {("fa3", "sm_90"): FA3_HOPPER}


def rate_of(kernel: str, hardware: Hardware) -> Rate:
    """What a kernel is taken to reach on a GPU."""
    generation = GENERATIONS[hardware.architecture]
    flash = FA2_HOPPER if generation in ("sm_90", "sm_100") else FA2_AMPERE
    return RATES.get((kernel, generation), flash)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        keys: ``[programs]``, keys that each computes, block sizes filled up, in launch order.
        rows: queries of a program.
        bytes: that it reads and writes.
    """

    keys: Ints
    rows: int
    bytes: int


@dataclass(frozen=True)
class Prediction:
    """Attention of one rank and layer on paper.

    Args:
        seconds: predicted.
        flops: of the pairs that are attended.
        share: those over the seconds, of the chip's rate.
        kept: share of a kernel's best that waves and padding leave.
        launches: of the kernel.
        rate: what the kernel is taken to reach.
    """

    seconds: float
    flops: float
    share: float
    kept: float
    launches: int
    rate: Rate


def predict(
    layouts: Sequence[BlockLayout],
    hardware: Hardware,
    *,
    heads: int,
    head_dim: int,
    backend: str = "triton",
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
) -> Prediction | None:
    """Predicts the attention of one rank and layer.

    Args:
        layouts: of the blocks that the rank attends, from its exchange's plan.
        hardware: the GPU.
        heads, head_dim, dtype, batch: of queries, keys and values.
        backend: name of one.

    Returns:
        None where there is nothing to go by: a dtype of 32 bits, a backend of other kernels.
    """
    if hardware.attention is not None:
        return _measured(layouts, hardware, hardware.attention, batch * heads * head_dim)
    name, _, kernel = backend.partition(":")
    if dtype.itemsize != 2 or name not in ("auto", "triton", "flashinfer", "sdpa"):
        return None
    of_token = batch * heads * head_dim * dtype.itemsize
    launches: list[Launch] = []
    for layout in layouts:
        if name == "sdpa":
            launches += _tile_by_tile(layout, batch * heads, of_token)
        elif layout.tiles:
            shape = shape_for(hardware.architecture, dtype, head_dim)
            launches.append(_strips(layout, shape.rows, shape.keys, batch * heads, of_token))
    rate = rate_of(kernel or name, hardware)
    of_pair = 4 * padded(head_dim) / (hardware.flops / hardware.processors * rate.share)
    busy = seconds = 0.0
    for launch in launches:
        compute = makespan(launch.keys, hardware.processors) * launch.rows * of_pair
        seconds += max(compute, launch.bytes / hardware.bandwidth) + LAUNCH_SECONDS
        busy += compute
    flops = 4.0 * head_dim * batch * heads * sum(layout.pairs for layout in layouts)
    best = flops / (hardware.flops * rate.share)
    return Prediction(
        seconds=seconds,
        flops=flops,
        share=flops / seconds / hardware.flops if seconds else 0.0,
        kept=best / busy if busy else 0.0,
        launches=len(launches),
        rate=rate,
    )


def _measured(
    layouts: Sequence[BlockLayout], hardware: Hardware, reached: float, channels: int
) -> Prediction:
    """By the rate that attention was measured to reach, whatever is lost."""
    flops = 4.0 * channels * sum(layout.pairs for layout in layouts)
    share = reached / hardware.flops
    rate = Rate(share, hardware.source or "measured")
    return Prediction(flops / reached, flops, share, 1.0, len(layouts), rate)


def makespan(work: Ints, processors: int) -> int:
    """When the last program ends, if processors take the next one in order as they become free."""
    if not len(work):
        return 0
    if (work == work[0]).all():
        return -(-len(work) // processors) * int(work[0])
    free = [0] * min(processors, len(work))
    for keys in work.tolist():
        heapq.heapreplace(free, free[0] + keys)
    return max(free)


def _strips(layout: BlockLayout, rows: int, keys: int, heads: int, of_token: int) -> Launch:
    """The one launch of a kernel that follows the tables of `lvsa.strips`."""
    first, stop, block, block_stop, other, other_stop = layout.strips.table.numpy().T
    whole = (block_stop - block).astype(np.int64) * layout.strips.keys
    others = -(-(other_stop - other).astype(np.int64) // keys) * keys
    programs = np.repeat(whole + others, -(-(stop - first) // rows))
    return Launch(np.tile(programs, heads), rows, _bytes(layout.tiles, layout.n_queries, of_token))


def _tile_by_tile(layout: BlockLayout, heads: int, of_token: int) -> Iterator[Launch]:
    """The calls of `lvsa.backends.tile_by_tile`; keys that do not stand together are copied."""
    if layout.common:
        yield _dense_call(Tile(0, layout.n_queries, layout.common), 1, heads, of_token)
    for run in layout.runs:
        yield _dense_call(run.first, run.count, heads, of_token)
    for group in layout.groups:
        for tile in group.tiles:
            yield _dense_call(tile, 1, heads, of_token)


def _dense_call(tile: Tile, count: int, heads: int, of_token: int) -> Launch:
    rows, keys = FLASH
    programs = count * heads * -(-tile.n_queries // rows)
    work = np.full(programs, -(-tile.n_keys // keys) * keys, dtype=np.int64)
    moved = count * _bytes([tile], tile.n_queries, of_token)
    copies = 2 * 2 * tile.n_keys * of_token if len(tile.keys) > 1 else 0
    return Launch(work, rows, moved + copies)


def _bytes(tiles: Sequence[Tile], queries: int, of_token: int) -> int:
    """Queries and outputs, and each attended key and value once: the least that can be moved."""
    edges = sorted({keys for tile in tiles for keys in tile.keys})
    tokens = reached = 0
    for start, stop in edges:
        tokens += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return (2 * queries + 2 * tokens) * of_token


def predict_dense(
    queries: int, tokens: int, hardware: Hardware, *, heads: int, head_dim: int, backend: str
) -> Prediction | None:
    """Attention of so many queries over every token, by the same kernel, as `predict` has it."""
    layouts = [full_layout(queries, tokens)]
    return predict(layouts, hardware, heads=heads, head_dim=head_dim, backend=backend)
