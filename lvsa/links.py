"""What GPUs are connected by, as data: for predictions.

Bandwidths are those of standards and data sheets, one way. Latencies are those that NCCL reckons
with (src/graph/tuning.cc, ring, protocol "simple": 8.4 µs, and 3.4 for NVLink, 5.7 for PCIe, 9.6
for a network).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lvsa.errors import LVSAError

NVLINK, PCIE, NETWORK = 11.8e-6, 14.1e-6, 18e-6
"""Seconds of a transfer of next to nothing."""


@dataclass(frozen=True)
class Link:
    """A kind of connection.

    Args:
        name: as people call it.
        bandwidth: bytes/s, each way.
        latency: seconds until the first byte arrives.
        shared: whether all GPUs of a node share one, rather than each having its own.
        source: where the bandwidth stands.

    Raises:
        LVSAError: for a bandwidth that is not positive, or a negative latency.
    """

    name: str
    bandwidth: float
    latency: float
    shared: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for name, least in (("bandwidth", 1.0), ("latency", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value >= least:
                raise LVSAError(
                    f"{name} of link {self.name!r} is {value!r}; it must be a number of at least "
                    f"{least:g}"
                )


LINKS = {
    "nvlink3": Link(
        "NVLink 3", 300e9, NVLINK, source="NVIDIA A100 data sheet, 2021: 600 GB/s both ways"
    ),
    "nvlink4": Link(
        "NVLink 4", 450e9, NVLINK, source="NVIDIA H100 data sheet, 2022: 900 GB/s both ways"
    ),
    "nvlink5": Link(
        "NVLink 5", 900e9, NVLINK, source="NVIDIA DGX B200 user guide: 14.4 TB/s of 8 GPUs"
    ),
    "pcie4": Link(
        "PCIe 4.0 x16", 31.5e9, PCIE, source="PCI Express 4.0: 16 lanes of 16 GT/s, 128b/130b"
    ),
    "pcie5": Link(
        "PCIe 5.0 x16", 63e9, PCIE, source="PCI Express 5.0: 16 lanes of 32 GT/s, 128b/130b"
    ),
    "infiniband-200": Link(
        "InfiniBand 200 Gbit/s", 25e9, NETWORK,
        source="NVIDIA DGX A100 user guide: 8 ConnectX-6, HDR",
    ),
    "infiniband-400": Link(
        "InfiniBand 400 Gbit/s", 50e9, NETWORK,
        source="NVIDIA DGX H100 and B200 user guides: 8 ConnectX-7, NDR",
    ),
    **{
        f"ethernet-{gigabits}": Link(
            f"Ethernet {gigabits} Gbit/s", gigabits * 1e9 / 8, NETWORK, shared=True,
            source="IEEE 802.3",
        )
        for gigabits in (10, 25, 100, 400)
    },
}  # fmt: skip


def find_link(given: str | Mapping[str, Any]) -> Link:
    """A link by name, or of a mapping with the fields of `Link`.

    Raises:
        LVSAError: for a name that is not known, or fields that are missing or unknown.
    """
    if isinstance(given, str):
        if given.lower() not in LINKS:
            raise LVSAError(f"link {given!r} is not known; known: {', '.join(LINKS)}")
        return LINKS[given.lower()]
    if not isinstance(given, Mapping):
        raise LVSAError(f"a link is {given!r}; it must be a name or a table")
    check_keys("a link", given, Link, needed=("name", "bandwidth", "latency"))
    return Link(**given)


def check_keys(what: str, given: Mapping[str, Any], cls: Any, needed: tuple[str, ...]) -> None:
    """Stops where a table lacks what a dataclass needs, or has what it does not know.

    Raises:
        LVSAError: with all that is allowed.
    """
    allowed = [field.name for field in fields(cls)]
    missing = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in allowed]
    if missing or unknown:
        raise LVSAError(
            f"{what} has to give {', '.join(needed)}, and may give "
            f"{', '.join(key for key in allowed if key not in needed)}; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
