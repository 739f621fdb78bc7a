"""Planted faults: each breaks a comparison that holds without it."""

import pytest
import torch
from torch import distributed as dist

from lvsa import attention, rope
from lvsa.attention import LVSAttention, TextTokens
from lvsa.keyframes import published
from lvsa.merge import AttentionState, merge_into
from lvsa.shards import FrameGrid
from tests.support.oracle import masked_attention, placed, relative_error, token_mask
from tests.support.ranks import run_ranks

T, P, X, H, D = 12, 6, 5, 2, 8
S = T * P
GRID = FrameGrid(T, 2, 3)
# One anchor only: most frames of the first rank attend nothing that the others hold.
PATTERN = published(T, interval=T, window=1, n_first=1)
OTHER_PATTERN = published(T, interval=T, window=2, n_first=1)
FAULTS = {
    None: (),
    "rope without the rank's offset": ("video", "text"),
    "text counted once per rank": ("text",),
    "other noise on a rank": ("video", "text"),
    "another pattern on a rank": ("video",),
    "rows that attended nothing have log-sum-exp 0": ("video",),
}


def draw(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, n, H, D, generator=generator, dtype=torch.float64) for _ in range(3)]


def rotary_table():
    frequency = 1 / 50 ** (torch.arange(D // 2, dtype=torch.float64) / (D // 2))
    angle = torch.arange(S, dtype=torch.float64)[:, None] * frequency
    angle = angle.repeat_interleave(2, dim=1)[None, :, None]
    return angle.cos(), angle.sin()


def expected():
    q, k, v = draw(S, 0)
    text = draw(X, 1)
    q, k = rope.apply_rotary_1d(q, k, rotary_table(), S, 0, 1)
    mask = torch.ones(S + X, S + X, dtype=torch.bool)
    sets = placed("published", T, interval=T, window=1, n_first=1)[0]
    mask[:S, :S] = token_mask(sets, P)
    joined = [torch.cat(pair, dim=1) for pair in zip((q, k, v), text, strict=True)]
    return masked_attention(*joined, mask).split([S, X], dim=1)


def first_rows(table, dim, local_seq, rank, world):
    return table.narrow(dim, 0, local_seq)


def with_fault(rank, world, fault, exchange):
    """Errors of video and text with a fault planted, against the dense oracle of one process."""
    with pytest.MonkeyPatch.context() as patch:
        pattern, seed = PATTERN, 0
        if fault == "rope without the rank's offset":
            patch.setattr(rope, "local_rows", first_rows)
        if fault == "other noise on a rank":
            seed = 100 * rank
        if fault == "another pattern on a rank":
            patch.setattr(attention, "check_agreement", lambda *args, **kwargs: None)
            pattern = OTHER_PATTERN if rank else PATTERN
        engine = LVSAttention(pattern, GRID, group=dist.group.WORLD, exchange=exchange)
        if fault == "text counted once per rank":
            patch.setattr(attention, "group_rank", lambda group: 0)
        if fault == "rows that attended nothing have log-sum-exp 0":
            attend = engine.backend.attend

            def zero_for_nothing(q, k, v, layout, scale=None, state=None, more=False):
                out, lse = attend(q, k, v, layout, scale)
                part = AttentionState(out, lse.masked_fill(lse == -torch.inf, 0.0))
                return merge_into(state, part)

            patch.setattr(engine.backend, "attend", zero_for_nothing)
        part = slice(*engine.shards.token_range(rank))
        q, k, v = (x[:, part] for x in draw(S, seed))
        q, k = rope.apply_rotary_1d(q, k, rotary_table(), q.shape[1], rank, world)
        video, text = engine(q, k, v, TextTokens(*draw(X, 1)))
    expected_video, expected_text = expected()
    return {
        "video": relative_error(video, expected_video[:, part]),
        "text": relative_error(text, expected_text),
    }


def with_all_faults(rank, world):
    # A rank with another pattern would wait for frames that nobody sends: all come to it here.
    return {
        (fault, exchange): with_fault(rank, world, fault, exchange)
        for fault in FAULTS
        for exchange in ("all_gather", "ring", "needed")
        if exchange == "all_gather" or fault != "another pattern on a rank"
    }


@pytest.fixture(scope="module")
def errors_of_ranks():
    return run_ranks(3, with_all_faults)


@pytest.mark.parametrize("output", ["video", "text"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_breaks_the_comparison(fault, output, errors_of_ranks):
    exchanges = [exchange for f, exchange in errors_of_ranks[0] if f == fault]
    assert exchanges
    for exchange in exchanges:
        worst = max(errors[fault, exchange][output] for errors in errors_of_ranks)
        if output in FAULTS[fault]:
            assert worst > 1e-2, exchange
        else:
            assert worst < 1e-10, exchange
