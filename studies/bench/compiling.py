"""Triton kernels compiled for GPUs that need not be here, and what their code says of itself.

The package triton has the compilers and cuobjdump in its wheel.
"""

import logging
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lvsa.errors import LVSAError
from lvsa.launch.records.output import write_record
from lvsa.studies.bench.chips import Resources

logger = logging.getLogger(__name__)

TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|v_mfma_\w+?)(?=[\s._])")
SPILL = re.compile(r"\b(?:STL|LDL)\b")
# Bits of an access to global memory by one thread; words of 32 bits on AMD.
ACCESS = re.compile(r"\b(?:LDG|STG)\.E[.\w]*?\.(64|128)\b")
AMD_ACCESS = re.compile(r"\bglobal_(?:load|store)_dwordx(\d)\b")
ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def check_known(given: Sequence[str], known: Iterable[str]) -> None:
    """Stops for names that are not known.

    Raises:
        LVSAError: with those that are.
    """
    for name in given:
        if name not in known:
            raise LVSAError(f"unknown: {name!r}; known: {', '.join(known)}")


def write_rows(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], table: Sequence[str]
) -> None:
    """Writes what was compiled, as NAME.json and as the table NAME.md."""
    write_record(folder / f"{name}.json", {"rows": list(rows)})
    path = folder / f"{name}.md"
    path.write_text("\n".join(table) + "\n")
    logger.info("wrote %s", path)


def compiled(
    kernel: Any,
    target: str,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    any_number: frozenset[str] = frozenset(),
    **options: Any,
) -> Any:
    """A kernel compiled for a GPU, with strides and pointers that divide as they do in models.

    Args:
        kernel: decorated by `triton.jit`.
        target: architecture of the GPU: sm_90, gfx942.
        types: of its arguments by name, as Triton writes them; i32 where none is given.
        constants: its constexpr arguments.
        any_number: arguments that need not divide, besides those that the kernel does not
            specialize.
        options: of the launch: num_warps, num_stages, enable_fp_fusion.

    Raises:
        LVSAError: where Triton's interpreter has taken the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.JITFunction):
        raise LVSAError("TRITON_INTERPRET is set, and what is interpreted cannot be compiled")
    names = kernel.arg_names
    any_number |= {p.name for p in kernel.params if p.do_not_specialize}
    kinds = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(
        kernel,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if name not in constants and name not in any_number
        },
    )
    architecture = (
        GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        if target.startswith("sm_")
        else GPUTarget("hip", target, 64)
    )
    return triton.compile(source, target=architecture, options=options)


def read_resources(compiled: Any) -> Resources:
    """What the machine code of a compiled kernel says about itself."""
    if "cubin" not in compiled.asm:
        return read_amdgcn(compiled.asm["amdgcn"], compiled.metadata.shared)
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run(
                [cuobjdump, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-sass", "-res-usage")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found, usage
    return Resources(
        tensor_core=dict(Counter(TENSOR_CORE.findall(code))),
        spills=len(SPILL.findall(code)),
        registers=int(found[1]),
        shared=int(found[3]) + compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        access=max(map(int, ACCESS.findall(code)), default=32),
    )


def read_amdgcn(code: str, shared: int) -> Resources:
    """What AMD's assembly lists of a kernel; shared memory is a matter of its launch."""

    def listed(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found, name
        return int(found[1])

    return Resources(
        tensor_core=dict(Counter(TENSOR_CORE.findall(code))),
        spills=listed("vgpr_spill_count") + listed("sgpr_spill_count"),
        # One file of registers for vectors and accumulators; the count is of both.
        registers=listed("vgpr_count"),
        shared=listed("group_segment_fixed_size") + shared,
        access=32 * max(map(int, AMD_ACCESS.findall(code)), default=1),
    )
