"""The benchmark of decoding on several ranks measures both ways, and how far they differ."""

import torch

from lvsa.launch.media.rows import distvae_missing
from lvsa.studies.bench.decoding import DecodingBench, bench
from tests.support.missing import missing
from tests.support.ranks import run_ranks

TINY = DecodingBench(frames=3, height=64, width=64, repeats=1, device="cpu")


def measured(rank, world):
    return bench(TINY, torch.device("cpu"))


def test_alone_and_together():
    if reason := distvae_missing():
        missing(reason)
    first, second = run_ranks(2, measured)
    assert first["seconds"].keys() == {"alone", "together"} and min(first["seconds"].values()) > 0
    assert first["error"] <= 1e-5
    assert 0 < first["peaks"]["together"] < first["peaks"]["alone"]
    assert second["peaks"].keys() == {"together"}, "while the first rank decodes alone it waits"
