"""GPUs as data: what their makers say that they give, for predictions.

Figures are of the data sheets named as sources: dense rates, without structured sparsity, at boost
clock. Cards in service run below them.
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lvsa.backends.triton_shapes import GENERATIONS
from lvsa.errors import LVSAError


@dataclass(frozen=True)
class Hardware:
    """A GPU.

    Args:
        name: as its maker calls it.
        architecture: a key of `lvsa.backends.triton_shapes.GENERATIONS`, as sm_90.
        processors: streaming multiprocessors.
        flops: dense bfloat16 products with float32 sums, FLOP/s.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        source: where the figures stand.

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

    def __post_init__(self) -> None:
        if self.architecture not in GENERATIONS:
            known = ", ".join(name for name in GENERATIONS if name != "interpreter")
            raise LVSAError(f"architecture is {self.architecture!r}; known: {known}")
        for name in ("processors", "flops", "bandwidth", "memory"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise LVSAError(f"{name} of {self.name} is {value!r}; it must be a positive number")


HARDWARE = {
    "a100": Hardware(
        "A100 SXM 80 GB", "sm_80", 108, 312e12, 2.039e12, 80e9,
        "NVIDIA A100 Tensor Core GPU data sheet, 2021",
    ),
    "h100": Hardware(
        "H100 SXM", "sm_90", 132, 989.4e12, 3.35e12, 80e9,
        "NVIDIA H100 Tensor Core GPU Architecture white paper v1.04, tables 1 and 2",
    ),
    "h200": Hardware(
        "H200 SXM", "sm_90", 132, 989.4e12, 4.8e12, 141e9,
        "NVIDIA H200 Tensor Core GPU data sheet, 2024",
    ),
    "b200": Hardware(
        "B200 SXM", "sm_100", 148, 2250e12, 7.7e12, 180e9,
        "NVIDIA Blackwell data sheet, HGX B200, 2025",
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
    ),
}  # fmt: skip


def find_hardware(name: str) -> Hardware:
    """A GPU by name, or of a TOML file with the fields of `Hardware`.

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
    allowed = [field.name for field in fields(Hardware)]
    missing = [key for key in allowed if key not in values and key != "source"]
    unknown = [key for key in values if key not in allowed]
    if missing or unknown:
        raise LVSAError(
            f"hardware {name!r} has to give {', '.join(allowed)}; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return Hardware(**values)
