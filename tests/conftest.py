"""Tiny tensors are slower on many threads than on one, and ranks share the machine's cores."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _environment_of_each_test() -> Iterator[None]:
    """What a test leaves in the environment (RANK, WORLD_SIZE, …) does not reach the next."""
    before = dict(os.environ)
    yield
    for name in {*os.environ} - {*before, "PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"})
