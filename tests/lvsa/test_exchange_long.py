"""Very long videos: plans are made when a step needs them, and say the same."""

import numpy as np
import pytest
import torch

from lvsa.attention import LVSAttention
from lvsa.exchange import EXCHANGES, base
from lvsa.keyframes import published
from lvsa.pattern import MOST_FRAMES
from lvsa.shards import FrameGrid, Shards
from tests.support.ranks import run_ranks

PATTERN = published(12, interval=4, window=1, rotate=True)
GRID = FrameGrid(12, 1, 3)


def outputs(rank, world, cells):
    base.MOST_CELLS = cells
    group = torch.distributed.group.WORLD
    engine = LVSAttention(PATTERN, GRID, group=group)
    assert isinstance(engine.exchange.plans, list) == (cells > 0)
    part = slice(*engine.shards.token_range(rank))
    found = []
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        q, k, v = (torch.randn(1, 36, 2, 8, generator=generator)[:, part] for _ in range(3))
        engine.step = step
        found.append(engine(q, k, v)[0])
    return torch.stack(found)


def test_plans_made_when_needed_give_the_same_bits():
    for ahead, late in zip(*(run_ranks(2, outputs, c) for c in (10**9, 0)), strict=True):
        assert torch.equal(ahead, late)


@pytest.mark.parametrize("name", sorted(EXCHANGES))
def test_plans_are_read_like_a_list(name, monkeypatch):
    monkeypatch.setattr(base, "MOST_CELLS", 0)
    plans = EXCHANGES[name](Shards(GRID, 3), PATTERN, 1, None).plans
    assert len(plans) == 4 and len(plans[:3]) == 3
    assert plans[1] is plans[1], "the last one is kept"
    assert plans[-1].received_tokens == plans[3].received_tokens
    with pytest.raises(IndexError):
        plans[4]


def test_the_longest_video_can_be_set_up():
    pattern = published(MOST_FRAMES, horizon=21, rotate=True)
    exchange = EXCHANGES["needed"](Shards(FrameGrid(MOST_FRAMES, 1, 1), 8), pattern, 3, None)
    own = exchange.plans[5].blocks[0].layout
    assert own.n_queries == MOST_FRAMES // 8 and own.covers_all_queries
    assert np.isclose(pattern.attended[5].mean() * MOST_FRAMES, 21, atol=2)
