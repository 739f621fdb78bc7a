"""GPUs as data: what their makers say that they give, for predictions.

Figures are of the data sheets named as sources: dense rates, without structured sparsity, at boost
clock. Cards in service run below them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvsa.backends.triton_shapes import GENERATIONS
from lvsa.errors import LVSAError
from lvsa.links import LINKS, Link, check_keys, find_link

# Stas Bekman's Machine Learning Engineering, "Maximum Achievable Matmul FLOPS": measured shares of
# the data sheets' rates, of A100, H100 (H200 has the same chip) and B200 SXM.
MATMUL_A100, MATMUL_H100, MATMUL_B200 = 0.859, 0.803, 0.776
# For want of a measurement of the others.
MATMUL = 0.8


@dataclass(frozen=True)
class Hardware:
    """A GPU, and what connects it to others.

    Args:
        name: as its maker calls it.
        architecture: a key of `lvsa.backends.triton_shapes.GENERATIONS`, as sm_90; anything where
            ``attention`` is given.
        processors: streaming multiprocessors.
        flops: dense bfloat16 products with float32 sums, FLOP/s.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        source: where the figures stand.
        matmul: share of ``flops`` that large matrix products reach.
        attention: FLOP/s that attention reaches, where it was measured; None to count it out.
        per_node: GPUs of a node.
        inside: what connects them.
        between: what connects nodes.

    Raises:
        LVSAError: for an unknown architecture or a figure that is not positive.
    """

    name: str
    architecture: str
    processors: int
    flops: float
    bandwidth: float
    memory: float
    source: str = ""
    matmul: float = MATMUL
    attention: float | None = None
    per_node: int = 8
    inside: Link = LINKS["pcie4"]
    between: Link = LINKS["ethernet-100"]

    def __post_init__(self) -> None:
        if self.architecture not in GENERATIONS and self.attention is None:
            known = ", ".join(name for name in GENERATIONS if name != "interpreter")
            raise LVSAError(f"architecture is {self.architecture!r}; known: {known}")
        for name in ("processors", "flops", "bandwidth", "memory", "matmul", "per_node"):
            self._check_positive(name)
        if self.attention is not None:
            self._check_positive("attention")

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float) or not value > 0:
            raise LVSAError(f"{name} of {self.name} is {value!r}; it must be a positive number")


# Links are those of NVIDIA's DGX systems with these GPUs, of which each has a network adapter.
HARDWARE = {
    "a100": Hardware(
        "A100 SXM 80 GB", "sm_80", 108, 312e12, 2.039e12, 80e9,
        "NVIDIA A100 Tensor Core GPU data sheet, 2021", MATMUL_A100,
        inside=LINKS["nvlink3"], between=LINKS["infiniband-200"],
    ),
    "h100": Hardware(
        "H100 SXM", "sm_90", 132, 989.4e12, 3.35e12, 80e9,
        "NVIDIA H100 Tensor Core GPU Architecture white paper v1.04, tables 1 and 2", MATMUL_H100,
        inside=LINKS["nvlink4"], between=LINKS["infiniband-400"],
    ),
    "h200": Hardware(
        "H200 SXM", "sm_90", 132, 989.4e12, 4.8e12, 141e9,
        "NVIDIA H200 Tensor Core GPU data sheet, 2024", MATMUL_H100,
        inside=LINKS["nvlink4"], between=LINKS["infiniband-400"],
    ),
    "b200": Hardware(
        "B200 SXM", "sm_100", 148, 2250e12, 7.7e12, 180e9,
        "NVIDIA Blackwell data sheet, HGX B200, 2025", MATMUL_B200,
        inside=LINKS["nvlink5"], between=LINKS["infiniband-400"],
    ),
    "l40s": Hardware(
        "L40S", "sm_89", 142, 362e12, 0.864e12, 48e9,
        "NVIDIA L40S GPU data sheet, 2023",
    ),
    "rtx4090": Hardware(
        "GeForce RTX 4090", "sm_89", 128, 165.2e12, 1.008e12, 24e9,
        "NVIDIA Ada GPU Architecture white paper v2.1, appendix A",
    ),
    "rtx5090": Hardware(
        "GeForce RTX 5090", "sm_120", 170, 209.5e12, 1.792e12, 32e9,
        "NVIDIA RTX Blackwell GPU Architecture white paper v1.1, appendix A",
        inside=LINKS["pcie5"],
    ),
}  # fmt: skip
NEEDED = ("name", "architecture", "processors", "flops", "bandwidth", "memory")


def find_hardware(name: str) -> Hardware:
    """A GPU by name, or of a TOML file with the fields of `Hardware`.

    In a file, ``like`` names a GPU whose figures hold where the file gives none, and a link is the
    name of one, or a table with the fields of `lvsa.links.Link`.

    Raises:
        LVSAError: for a name that is neither, or a file that does not describe a GPU.
    """
    known = HARDWARE.get(name.lower())
    if known is not None:
        return known
    path = Path(name).expanduser()
    if not path.is_file():
        raise LVSAError(f"hardware {name!r} is no file and not known; known: {', '.join(HARDWARE)}")
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LVSAError(f"hardware {name!r} is no TOML: {error}") from error
    return hardware_of(f"hardware {name!r}", values)


def hardware_of(what: str, values: Mapping[str, Any]) -> Hardware:
    """A GPU of plain values, as a TOML file has them.

    Args:
        what: where they come from, for messages.

    Raises:
        LVSAError: for values that do not describe a GPU.
    """
    given = dict(values)
    like = given.pop("like", None)
    if like is not None:
        if not isinstance(like, str) or like.lower() not in HARDWARE:
            raise LVSAError(f"{what} is like {like!r}; known: {', '.join(HARDWARE)}")
        given = {**vars(HARDWARE[like.lower()]), **given}
    check_keys(what, given, Hardware, NEEDED)
    for place in ("inside", "between"):
        if not isinstance(given.get(place, LINKS["pcie4"]), Link):
            given[place] = find_link(given[place])
    return Hardware(**given)
