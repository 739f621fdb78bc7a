"""LVSA inside vLLM-Omni's real engine on two processes: every mode gives what one process gives."""

import pytest

from tests.serving.support.engines import BEYOND, engine, generated
from tests.support.oracle import relative_error

pytestmark = pytest.mark.vllm_omni
SIZES = {"divides": (BEYOND, 64, 64), "does not divide": (BEYOND, 48, 48)}
"""41 latent frames of 16 tokens, and of 9: 369 tokens on two ranks."""
OPTIONS = {"rotate_keyframes": True}


@pytest.fixture(scope="module")
def expected():
    with engine(OPTIONS) as omni:
        return {name: generated(omni, *size) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    "mode", ["ulysses_degree", "allgather_degree", "cfg_parallel_size", "tensor_parallel_size"]
)
def test_two_ranks_give_what_one_gives(mode, expected):
    with engine(OPTIONS, **{mode: 2}) as omni:
        for name, size in SIZES.items():
            assert relative_error(generated(omni, *size), expected[name]) < 2e-4, name
