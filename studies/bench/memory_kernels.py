"""Resources of the kernels that memory bounds: rotation of queries and keys, merging of states.

    python studies/bench/memory_kernels.py --output-dir outputs/kernels

They are compiled for GPUs that need not be here. What counts for them: no spilled registers, wide
accesses to memory, and enough warps on a processor to keep it busy.
"""

import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from lvsa.launch.processes.reporting import run_reporting
from lvsa.studies.bench.chips import CHIPS, Resources, programs_on
from lvsa.studies.bench.compiling import (
    ELEMENTS,
    check_known,
    compiled,
    read_resources,
    write_rows,
)

logger = logging.getLogger("lvsa.studies.bench.memory_kernels")

WARPS = 4
KERNELS = ("rotate", "rotate halves", "merge")


@dataclass(frozen=True)
class MemoryKernelsConfig:
    """Compiles the kernels of lvsa/kernels for GPUs and lists what they take of them."""

    targets: tuple[str, ...] = tuple(CHIPS)
    """GPUs, by architecture."""
    kernels: tuple[str, ...] = KERNELS
    """rotate turns pairs of neighbors, rotate halves pairs that stand half a head apart."""
    head_dims: tuple[int, ...] = (64, 80, 96, 128, 256)
    """D: channels of a head."""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    """dtypes of queries and keys, and of the last merged output; states are float32."""
    output_dir: Path = Path("outputs/kernels")
    """Folder for memory_kernels.json and the table memory_kernels.md."""


@dataclass(frozen=True)
class Row:
    """A kernel on a GPU."""

    target: str
    kernel: str
    dtype: str
    head_dim: int
    resources: Resources

    @property
    def programs(self) -> int:
        """Programs that fit on a processor."""
        return programs_on(CHIPS[self.target], self.resources, WARPS)

    @property
    def occupancy(self) -> float:
        """Share of the warps that a processor can hold."""
        return self.programs * WARPS / CHIPS[self.target].warps


def rotation(target: str, dtype: torch.dtype, head_dim: int, halves: bool) -> Resources:
    """The rotation with float32 angles, in the shape that `lvsa.kernels.rotate` launches."""
    from lvsa.kernels.rotate import HEADS, rotate_both, tile

    half, rows = tile(head_dim)
    types = dict.fromkeys(("q", "k", "q_out", "k_out"), f"*{ELEMENTS[dtype]}")
    types |= dict.fromkeys(("cos", "sin"), "*fp32")
    sizes = {"PAIRS": head_dim // 2, "HALF": half, "ROWS": rows, "HEADS": HEADS, "HALVES": halves}
    # The number of heads, and strides of angles that are cut from wider tables.
    free = frozenset({"H", "c_p", "s_p"})
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    return read_resources(compiled(rotate_both, target, types, sizes, free, **options))


def merging(target: str, dtype: torch.dtype, head_dim: int) -> Resources:
    """The last merge of two states, which writes the dtype of the queries."""
    from lvsa.kernels.merge import merge_states, tile

    block, rows = tile(head_dim)

    types = dict.fromkeys(("lse", "a_out", "a_lse", "b_out", "b_lse"), "*fp32")
    types |= {"out": f"*{ELEMENTS[dtype]}"}
    sizes = {"D": head_dim, "BLOCK_D": block, "ROWS": rows}
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    return read_resources(compiled(merge_states, target, types, sizes, frozenset({"H"}), **options))


def resources(config: MemoryKernelsConfig) -> list[Row]:
    """Compiles all combinations, and writes the JSON and the table.

    Raises:
        LVSAError: for a GPU or a kernel that is not known, or where Triton interprets.
    """
    check_known(config.targets, CHIPS)
    check_known(config.kernels, KERNELS)
    rows = []
    for target, kernel, name, D in itertools.product(
        config.targets, config.kernels, config.dtypes, config.head_dims
    ):
        dtype = getattr(torch, name)
        found = (
            merging(target, dtype, D)
            if kernel == "merge"
            else rotation(target, dtype, D, halves=kernel == "rotate halves")
        )
        rows.append(Row(target, kernel, name, D, found))
        logger.info("%s", as_markdown(rows[-1:])[-1])
    record = [asdict(row) | {"occupancy": row.occupancy} for row in rows]
    write_rows(config.output_dir, "memory_kernels", record, as_markdown(rows))
    return rows


HEADER = (
    "| GPU | kernel | spills | registers | shared KiB | bits of an access | "
    "warps of those that fit |"
)


def as_markdown(rows: Sequence[Row]) -> list[str]:
    """Lines of a table: over all dtypes and head dimensions what is worst."""
    lines = [HEADER, "|---|---|--:|--:|--:|--:|--:|"]
    for (target, kernel), group in itertools.groupby(
        rows, key=lambda row: (row.target, row.kernel)
    ):
        each = list(group)
        lines.append(
            f"| {target} ({CHIPS[target].name}) | {kernel} "
            f"| {max(row.resources.spills for row in each)} "
            f"| {max(row.resources.registers for row in each)} "
            f"| {max(row.resources.shared for row in each) / 1024:.0f} "
            f"| {min(row.resources.access for row in each)} "
            f"| {min(row.occupancy for row in each):.0%} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: resources(tyro.cli(MemoryKernelsConfig, args=argv))))


if __name__ == "__main__":
    main()
