"""Resources of the Triton kernel on GPUs that need not be here: it is compiled, and its code read.

    python studies/bench/kernel_resources.py --output-dir outputs/kernels

For each shape that `lvsa.backends.triton_shapes` ships: tensor-core instructions, spilled
registers, registers, shared memory, and how many programs fit on a processor of the chip. Needs
the package triton, whose wheel holds the compilers and cuobjdump.
"""

import itertools
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from lvsa.backends.triton_shapes import KernelShape, padded, precision, shape_for
from lvsa.launch.processes.reporting import run_reporting
from lvsa.strips import BLOCK_KEYS, STRIP_ROWS
from lvsa.studies.bench.chips import CHIPS, Resources, programs_on
from lvsa.studies.bench.compiling import (
    ELEMENTS,
    check_known,
    compiled,
    read_resources,
    write_rows,
)

logger = logging.getLogger("lvsa.studies.bench.kernel_resources")

# The four launches that attention is made of: tables, running state, written into, out in float32.
LAUNCHES = {
    "first of several blocks": (True, False, False, True),
    "block between": (True, True, True, True),
    "last block": (True, True, False, False),
    "every key, at the end": (False, True, False, False),
}


@dataclass(frozen=True)
class ResourcesConfig:
    """Compiles the Triton kernel for GPUs and lists what it takes of them."""

    targets: tuple[str, ...] = tuple(CHIPS)
    """GPUs, by architecture."""
    head_dims: tuple[int, ...] = (64, 80, 96, 128, 256)
    """D: channels of a head."""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    """dtypes of queries, keys and values."""
    launches: tuple[str, ...] = tuple(LAUNCHES)
    """Which of the launches that attention is made of."""
    output_dir: Path = Path("outputs/kernels")
    """Folder for kernel_resources.json and the table kernel_resources.md."""


@dataclass(frozen=True)
class Row:
    """A shape on a GPU, for one launch."""

    target: str
    dtype: str
    head_dim: int
    launch: str
    shape: KernelShape
    resources: Resources

    @property
    def programs(self) -> int:
        """Programs that fit on a processor."""
        return programs_on(CHIPS[self.target], self.resources, self.shape.warps)

    @property
    def occupancy(self) -> float:
        """Share of the warps that a processor can hold."""
        return self.programs * self.shape.warps / CHIPS[self.target].warps


def compile_kernel(
    target: str, shape: KernelShape, dtype: torch.dtype, head_dim: int, launch: str
) -> Any:
    """The kernel of attention compiled for a GPU; see `compiled`."""
    from lvsa.backends.triton_kernel import attend_strips

    tables, state, in_place, more = LAUNCHES[launch]
    constants = {
        "D": head_dim,
        "BLOCK_D": padded(head_dim),
        "ROWS": shape.rows,
        "KEYS": shape.keys,
        "STRIP_ROWS": STRIP_ROWS if tables else shape.rows,
        "BLOCK_KEYS": BLOCK_KEYS if tables else shape.keys,
        "TABLES": tables,
        "STATE": state,
        "IN_PLACE": in_place,
        "PRECISION": precision(target, head_dim),
        "WIDEN": False,
    }
    element = ELEMENTS[dtype]
    types = dict.fromkeys(("q", "k", "v"), f"*{element}")
    types |= dict.fromkeys(("lse", "state_out", "state_lse"), "*fp32")
    types |= dict.fromkeys(("strips", "whole_blocks", "other_keys"), "*i32")
    types |= {"out": "*fp32" if more else f"*{element}", "scale_log2": "fp32"}
    options = {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}
    return compiled(attend_strips, target, types, constants, frozenset({"scale_log2"}), **options)


def resources(config: ResourcesConfig) -> list[Row]:
    """Compiles all combinations, and writes the JSON and the table.

    Raises:
        LVSAError: for a GPU or a launch that is not known.
    """
    check_known(config.targets, CHIPS)
    check_known(config.launches, LAUNCHES)
    rows = []
    for target, name, D, launch in itertools.product(
        config.targets, config.dtypes, config.head_dims, config.launches
    ):
        dtype = getattr(torch, name)
        shape = shape_for(target, dtype, D)
        found = read_resources(compile_kernel(target, shape, dtype, D, launch))
        rows.append(Row(target, name, D, launch, shape, found))
        logger.info("%s", as_markdown(rows[-1:])[-1])
    record = [asdict(row) | {"programs": row.programs} for row in rows]
    write_rows(config.output_dir, "kernel_resources", record, as_markdown(rows))
    return rows


HEADER = (
    "| GPU | dtype | D | queries × keys | warps | stages | tensor-core instructions | spills "
    "| registers | shared KiB | programs a processor | warps of those it holds |"
)


def as_markdown(rows: Sequence[Row]) -> list[str]:
    """Lines of a table; of the launches of a shape the most that any takes."""
    lines = [HEADER, "|---|---|--:|---|--:|--:|---|--:|--:|--:|--:|--:|"]
    for (target, dtype, D), group in itertools.groupby(
        rows, key=lambda row: (row.target, row.dtype, row.head_dim)
    ):
        launches = list(group)
        shape = launches[0].shape
        tensor_core = Counter[str]()
        for row in launches:
            tensor_core |= Counter(row.resources.tensor_core)
        lines.append(
            f"| {target} ({CHIPS[target].name}) | {dtype} | {D} | {shape.rows} × {shape.keys} "
            f"| {shape.warps} | {shape.stages} "
            f"| {', '.join(f'{n} {name}' for name, n in tensor_core.items())} "
            f"| {max(row.resources.spills for row in launches)} "
            f"| {max(row.resources.registers for row in launches)} "
            f"| {max(row.resources.shared for row in launches) / 1024:.0f} "
            f"| {min(row.programs for row in launches)} "
            f"| {min(row.occupancy for row in launches):.0%} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: resources(tyro.cli(ResourcesConfig, args=argv))))


if __name__ == "__main__":
    main()
