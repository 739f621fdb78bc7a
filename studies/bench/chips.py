"""Processors of GPUs: what they have to share out, and how many programs fit on one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU, by what one of its processors holds.

    Args:
        name: of cards with it.
        registers: of 32 bits.
        shared: bytes of shared memory.
        shared_of_program: bytes of it that one program may have.
        warps: resident at most.
        programs: resident at most.
        lanes: threads of a warp.
        shared_reserved: bytes of shared memory that the system keeps of every program.
        tensor_memory: columns.
    """

    name: str
    registers: int
    shared: int
    shared_of_program: int
    warps: int
    programs: int
    lanes: int = 32
    shared_reserved: int = 1024
    tensor_memory: int = 0


KIB = 1024
# NVIDIA: CUDA C++ Programming Guide, technical specifications by compute capability, and its
# chapters on shared memory and tensor memory. AMD: CDNA 3 instruction set architecture: 4 SIMDs of
# 512 registers by 64 lanes, up to 8 waves each.
CHIPS = {
    "sm_80": Chip("A100", 64 * KIB, 164 * KIB, 163 * KIB, warps=64, programs=32),
    "sm_86": Chip("RTX 3090", 64 * KIB, 100 * KIB, 99 * KIB, warps=48, programs=16),
    "sm_89": Chip("RTX 4090, L40S", 64 * KIB, 100 * KIB, 99 * KIB, warps=48, programs=24),
    "sm_90": Chip("H100, H200", 64 * KIB, 228 * KIB, 227 * KIB, warps=64, programs=32),
    "sm_100": Chip(
        "B200", 64 * KIB, 228 * KIB, 227 * KIB, warps=64, programs=32, tensor_memory=512
    ),
    "sm_120": Chip("RTX 5090", 64 * KIB, 100 * KIB, 99 * KIB, warps=48, programs=24),
    "gfx942": Chip(
        "MI300X", 128 * KIB, 64 * KIB, 64 * KIB, warps=32, programs=16, lanes=64, shared_reserved=0
    ),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Args:
        tensor_core: instructions of each kind.
        spills: instructions that move registers to memory and back.
        registers: of a thread.
        shared: bytes of a program.
        tensor_memory: columns of a program, on sm_100.
        access: bits that a thread reads or writes of global memory at once, at most.
    """

    tensor_core: dict[str, int]
    spills: int
    registers: int
    shared: int
    tensor_memory: int = 0
    access: int = 32


def programs_on(chip: Chip, resources: Resources, warps: int) -> int:
    """Programs of so many warps that fit on a processor at once."""
    if resources.shared > chip.shared_of_program:
        return 0
    # Registers are given to a warp in units of 8 a thread.
    of_warp = -(-resources.registers // 8) * 8 * chip.lanes
    limits = [
        chip.programs,
        chip.warps // warps,
        chip.registers // of_warp // warps,
        chip.shared // max(resources.shared + chip.shared_reserved, 1),
    ]
    if resources.tensor_memory:
        limits.append(chip.tensor_memory // resources.tensor_memory)
    return min(limits)
