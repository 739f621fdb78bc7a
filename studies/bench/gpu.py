"""Everything that needs a CUDA device, in one command: correctness first, then benchmarks.

    make gpu

Runs the tests marked gpu, the benchmark of kernels and that of whole forwards, each as a process
of its own. It begins with what is installed, so that a machine without a network is told at once
which wheels to bring. Needs nothing beyond Python itself to say so.
"""

import logging
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

logger = logging.getLogger("lvsa.studies.bench.gpu")

# Module → wheel. What tests and benchmarks cannot do without, and what they also compare with.
NEEDED = {
    "torch": "torch, a build for the CUDA version of the driver (it brings triton)",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "tyro": "tyro",
    "matplotlib": "matplotlib",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
}
OPTIONAL = {
    "triton": "triton: the backend triton",
    "flashinfer": "flashinfer-python: the backend flashinfer",
    "flash_attn_interface": "flash_attn_3, built for this GPU: sdpa:fa3, and dense for comparison",
    "xfuser": "xfuser: dense for comparison",
}
KERNELS, FORWARD = "outputs/gpu/kernels", "outputs/gpu/forward"
COMMANDS = {
    "correctness against float64 on the CPU": ["-m", "pytest", "-m", "gpu"],
    "kernels": ["studies/bench/kernels.py", "--device", "cuda", "--output-dir", KERNELS],
    "whole forwards": [
        "studies/bench/forward.py", "--device", "cuda", "--output-dir", FORWARD,
    ],
}  # fmt: skip


def missing(modules: dict[str, str]) -> list[str]:
    """Wheels of the modules that are not installed."""
    return [wheel for module, wheel in modules.items() if find_spec(module) is None]


def run(commands: dict[str, list[str]]) -> int:
    """Runs commands by this Python, all of them even if one fails; the number that failed."""
    root = Path(__file__).parents[2]
    failed = 0
    for name, arguments in commands.items():
        logger.info("%s: python %s", name, " ".join(arguments))
        began = time.monotonic()
        code = subprocess.run([sys.executable, *arguments], cwd=root, check=False).returncode
        failed += code != 0
        logger.info(
            "%s: %s after %.0f s", name, "failed" if code else "done", time.monotonic() - began
        )
    return failed


def main() -> int:
    """The exit code: 0, 1 where something failed, 2 where something is missing."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    lacking = missing(NEEDED)
    if lacking:
        logger.error(
            "not installed: %s. Without a network: `pip download --dest wheels '.[dev]'` where "
            "there is one, for this Python and platform, then here `pip install --no-index "
            "--find-links wheels --editable '.[dev]'`",
            "; ".join(lacking),
        )
        return 2
    import torch

    if not torch.cuda.is_available():
        logger.warning(
            "PyTorch %s sees no CUDA device here, so nothing was tested or measured",
            torch.__version__,
        )
        return 0
    for wheel in missing(OPTIONAL):
        logger.warning("not installed, and so left out: %s", wheel)
    return 1 if run(COMMANDS) else 0


if __name__ == "__main__":
    sys.exit(main())
