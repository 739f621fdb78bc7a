"""Planted faults: each breaks a comparison that holds without it. And mistakes of callers."""

import re

import pytest
import torch
from diffusers.hooks import apply_context_parallel
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelOutput,
)
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import lvsa
from lvsa import rope
from lvsa.attention import LVSAttention, TextTokens
from lvsa.comm import check_replicated
from lvsa.cp_plans import ModelPlan
from lvsa.cp_plans.apply import apply_plan
from lvsa.cp_plans.base import zeros
from lvsa.errors import LVSAError, PlanError, RankMismatch, SequenceError
from lvsa.keyframes import published
from lvsa.merge import AttentionState
from lvsa.pattern import dense
from lvsa.processor import LVSAProcessor
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
            patch.setattr("lvsa.attention.check_agreement", lambda *args, **kwargs: None)
            pattern = OTHER_PATTERN if rank else PATTERN
        engine = LVSAttention(pattern, GRID, group=dist.group.WORLD, exchange=exchange)
        if fault == "text counted once per rank":
            engine.rank = 0
        if fault == "rows that attended nothing have log-sum-exp 0":
            attend = engine.backend.attend

            def zero_for_nothing(*args, **kwargs):
                out, lse = attend(*args, **kwargs)
                return AttentionState(out, lse.masked_fill(lse == -torch.inf, 0.0))

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


def other_noise(rank, world):
    latents = torch.randn(2, 3, generator=torch.Generator().manual_seed(rank))
    with pytest.raises(RankMismatch, match=r"from those of rank 0: latents \(rank 1\)\. Draw the"):
        check_replicated({"latents": latents, "prompt": torch.ones(3)}, dist.group.WORLD)


def other_engine(rank, world):
    group = dist.group.WORLD
    grids = (GRID, FrameGrid(T, 3, 2))
    patterns = (PATTERN, OTHER_PATTERN)
    exchanges = ("ring", "needed")
    for arguments, key in (
        ((patterns[rank], GRID, "ring"), "pattern"),
        ((PATTERN, grids[rank], "ring"), "grid"),
        ((PATTERN, GRID, exchanges[rank]), "exchange"),
    ):
        pattern, grid, exchange = arguments
        message = (
            f"ranks hold different attention settings; .*\n  {key}: .* on rank 0; .* on rank 1"
        )
        with pytest.raises(RankMismatch, match=message):
            LVSAttention(pattern, grid, group=group, exchange=exchange)
    digests = [pattern.digest for pattern in patterns]
    assert digests[0] != digests[1]


class Inner(nn.Module):
    def forward(self, hidden_states):
        return hidden_states * 2


class Toy(nn.Module):
    """A sequence in, its double out."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = Inner(), nn.Identity()

    def forward(self, hidden_states):
        return self.out(self.inner(hidden_states))


def toy_plan(expected_dims):
    return ModelPlan(
        "toy",
        {
            "inner": {
                "hidden_states": ContextParallelInput(split_dim=1, expected_dims=expected_dims)
            },
            "out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        },
        lambda model, grid: {"hidden_states": zeros(1, grid.tokens, 4)},
    )


def wrong_dims(rank, world):
    """Diffusers leaves a tensor of another rank whole, and what is gathered is not the video."""
    x = torch.arange(4.0 * S).reshape(1, S, 4)
    mesh = init_device_mesh("cpu", (world,))
    toy = Toy()
    applied = apply_plan(toy, toy_plan(3), mesh, GRID)
    assert torch.equal(toy(x), 2 * x)
    applied.remove()
    with pytest.raises(PlanError, match=r"inner: argument 'hidden_states' has 3 dimensions .*ts 4"):
        apply_plan(toy, toy_plan(4), mesh, GRID)
    assert torch.equal(toy(x), 2 * x)
    config = ContextParallelConfig(ring_degree=world)
    config._flattened_mesh = mesh
    apply_context_parallel(toy, config, toy_plan(4).plan)
    assert toy(x).shape == (1, world * S, 4), "without the trial it would have gone unnoticed"


def caught_faults(rank, world):
    other_noise(rank, world)
    other_engine(rank, world)
    wrong_dims(rank, world)


def test_faults_that_stop_every_rank():
    run_ranks(2, caught_faults)


def test_pattern_and_grid_of_different_lengths():
    with pytest.raises(LVSAError, match="the pattern is for 9 latent frames, the grid has 12"):
        LVSAttention(dense(9), GRID)


@pytest.mark.parametrize("wrong", ["queries", "keys", "values"])
@pytest.mark.parametrize("shape", [(1, S + 1, H, D), (1, S // 2, H, D), (S, H, D)])
def test_another_number_of_tokens(wrong, shape):
    engine = LVSAttention(PATTERN, GRID)
    given = dict(zip(("queries", "keys", "values"), draw(S, 0), strict=True))
    given[wrong] = torch.zeros(shape)
    message = (
        f"{wrong} are {shape}; LVSA was set up for T = 12 latent frames × P = 6 tokens = 72 on 1 "
        "rank(s), so each holds 72 tokens in dimension 1. Set it up again for this size and frame"
    )
    with pytest.raises(SequenceError, match=re.escape(message)):
        engine(*given.values())


def test_unknown_exchange_and_backend_even_on_one_rank():
    with pytest.raises(LVSAError, match="unknown exchange 'gather'; known: all_gather, ring, need"):
        LVSAttention(PATTERN, GRID, exchange="gather")
    with pytest.raises(LVSAError, match="unknown backend 'flash'; known: sdpa, flex, flashinfer"):
        LVSAttention(PATTERN, GRID, backend="flash")


def test_unknown_attention_arguments_are_not_dropped():
    processor = LVSAProcessor(None, LVSAttention(PATTERN, GRID))
    with pytest.raises(TypeError, match=r"attention arguments it does not know: \['dropout'\]"):
        processor(None, torch.zeros(1, S, 4), dropout=0.5)


class CrossAttentionOnly:
    """The two answers of an adapter that come before its text is attended."""

    def extract_qkv(self, attn, hidden, encoder):
        return hidden, hidden, hidden

    def extract_encoder_qkv(self, attn, encoder):
        return None


def test_masks_are_not_dropped():
    processor = LVSAProcessor(CrossAttentionOnly(), LVSAttention(PATTERN, GRID))
    hidden, mask = torch.zeros(1, S, H, D), torch.ones(1, S)
    with pytest.raises(LVSAError, match="a mask over video tokens, which it does not apply; allow"):
        processor(None, hidden, attention_mask=mask)
    with pytest.raises(LVSAError, match="applies no mask in cross-attention; leave the model's o"):
        processor(None, hidden, encoder_hidden_states=torch.zeros(1, X, 4), attention_mask=mask)


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="module 'lvsa' has no attribute 'enabel'"):
        _ = lvsa.enabel
    assert lvsa.enable is lvsa.adapters.install.enable.enable
    assert lvsa.LVSASession is lvsa.adapters.install.enable.LVSASession
