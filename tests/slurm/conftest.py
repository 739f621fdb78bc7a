"""One cluster for all tests of this folder, and what they run on it."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two GPUs; n10 sorts before n9 where names are compared as strings."""
    with running(nodes=("n9", "n10"), gpus=2) as started:
        yield started
