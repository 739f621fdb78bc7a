"""CogVideoX through the library call: each published kind, on 1 to 4 ranks."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

from lvsa.adapters.cogvideox import CogVideoXAdapter
from lvsa.backends import get_backend
from lvsa.backends.base import Backend
from tests.support import oracle
from tests.support.ranks import run_ranks
from tests.support.tiny import saved
from tests.support.tiny_cogvideox import (
    FIRST,
    KINDS,
    LONG,
    TEXT_TOKENS,
    cogvideox_pipeline,
    enabled,
    generate,
    load_cogvideox,
)

# The longest that is trained on: 13 latent frames, and 11 frames of tokens in 1.5.
AT_HORIZON = {kind: 81 if kind.startswith("1.5") else 49 for kind in KINDS}
AT_HORIZON["1.5-v2v"] = 80
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every kind as a pipeline saved to disk."""
    return {
        kind: str(saved(cogvideox_pipeline(kind), tmp_path_factory.mktemp(kind))) for kind in KINDS
    }


def sparse_generation(rank, world, kind, folder, exchange, seeds=(0,), **others):
    pipe = load_cogvideox(kind, folder)
    # Ranks whose own generators stand elsewhere: all noise must come from the one that is given.
    torch.manual_seed(1000 + rank)
    with enabled(pipe, LONG[kind], exchange=exchange) as session:
        assert not session.attention.pattern.is_dense
        return [generate(pipe, kind, LONG[kind], seed=seed, **others) for seed in seeds]


@pytest.fixture(scope="module")
def one_process(folders):
    return {kind: sparse_generation(0, 1, kind, folders[kind], "needed")[0] for kind in KINDS}


WAYS = ((2, "all_gather"), (3, "ring"), (4, "needed"))
RUNS = [(kind, *way) for kind in ("2b", "5b", "5b-i2v", "1.5", "1.5-i2v") for way in WAYS]
# Video-to-video differs from text-to-video before the first step only.
RUNS += [("5b-v2v", 3, "needed"), ("1.5-v2v", 2, "ring"), ("5b", 1, "needed")]


@pytest.mark.parametrize(("kind", "world", "exchange"), RUNS)
def test_generation_is_the_same_on_any_ranks(kind, world, exchange, folders, one_process):
    for (latents,) in run_ranks(world, sparse_generation, kind, folders[kind], exchange):
        torch.testing.assert_close(latents, one_process[kind], **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_differs_from_dense(kind, folders, one_process):
    dense = generate(load_cogvideox(kind, folders[kind]), kind, LONG[kind])
    assert (dense - one_process[kind]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_equals_stock_attention_at_the_horizon(kind, folders):
    pipe = load_cogvideox(kind, folders[kind])
    frames = AT_HORIZON[kind]
    stock = generate(pipe, kind, frames)
    with enabled(pipe, frames) as session:
        assert session.attention.pattern.is_dense
        assert session.blocks == 2
        torch.testing.assert_close(generate(pipe, kind, frames), stock, **CLOSE)
    # And the pipeline is its old self afterwards, bit for bit.
    assert torch.equal(generate(pipe, kind, frames), stock)


def dense_on_ranks(rank, world, folder, exchange):
    pipe = load_cogvideox("5b", folder)
    with enabled(pipe, 49, exchange=exchange):
        return generate(pipe, "5b", 49)


def test_two_ranks_equal_stock_attention_at_the_horizon(folders):
    stock = generate(load_cogvideox("5b", folders["5b"]), "5b", 49)
    for latents in run_ranks(2, dense_on_ranks, folders["5b"], "ring"):
        torch.testing.assert_close(latents, stock, **CLOSE)


PROMPTS = ["a red circle", "a b"]


def batch_of_two(rank, world, folder, exchange, guidance):
    pipe = load_cogvideox("5b", folder)
    with enabled(pipe, FIRST, exchange=exchange):
        return generate(pipe, "5b", FIRST, prompt=PROMPTS, guidance=guidance)


@pytest.mark.parametrize(("guidance", "exchange"), [(3.0, "needed"), (1.0, "all_gather")])
def test_two_prompts_of_different_lengths(guidance, exchange, folders):
    alone = batch_of_two(0, 1, folders["5b"], exchange, guidance)
    assert alone.shape[0] == 2
    for latents in run_ranks(3, batch_of_two, folders["5b"], exchange, guidance):
        torch.testing.assert_close(latents, alone, **CLOSE)


def test_both_guidance_passes_count(folders, one_process):
    (without,) = sparse_generation(0, 1, "5b", folders["5b"], "needed", guidance=1.0)
    assert (without - one_process["5b"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["2b", "1.5"])
def test_two_generations_equal_two_processes(kind, folders, one_process):
    first, second = sparse_generation(0, 1, kind, folders[kind], "needed", seeds=(0, 1))
    torch.testing.assert_close(first, one_process[kind], rtol=0, atol=0)
    ((alone,),) = run_ranks(1, sparse_generation, kind, folders[kind], "needed", (1,))
    torch.testing.assert_close(second, alone, **CLOSE)


class RankZerosPositions(CogVideoXAdapter):
    """A planted fault: every rank rotates as the first one does."""

    def apply_rotary(self, q, k, rotary_emb, local_seq, rank, world):
        return super().apply_rotary(q, k, rotary_emb, local_seq, 0, world)


def wrong_positions(rank, world, kind, folder):
    pipe = load_cogvideox(kind, folder)
    with enabled(pipe, LONG[kind], adapter=RankZerosPositions()):
        return generate(pipe, kind, LONG[kind])


@pytest.mark.parametrize(("kind", "matters"), [("5b", True), ("1.5", True), ("2b", False)])
def test_the_ranks_place_in_the_rotary_table_matters(kind, matters, folders, one_process):
    """2B has no rotation: there the fault cannot show."""
    latents = run_ranks(2, wrong_positions, kind, folders[kind])[0]
    error = (latents - one_process[kind]).abs().max()
    assert error > 1e-3 if matters else error < 1e-5


@torch.no_grad()
def test_joint_attention_by_the_definition(folders):
    """One sparse block against masked dense attention over text and video as one sequence."""
    pipe = load_cogvideox("5b", folders["5b"])
    attn, T, P, X = pipe.transformer.transformer_blocks[0].attn1, 25, 12, TEXT_TOKENS
    torch.manual_seed(3)
    hidden, encoder = torch.randn(2, T * P, 32), torch.randn(2, X, 32)
    rotary = pipe._prepare_rotary_positional_embeddings(32, 96, T, torch.device("cpu"))
    both = torch.cat([encoder, hidden], dim=1)
    q, k, v = (f(both).unflatten(2, (2, 16)) for f in (attn.to_q, attn.to_k, attn.to_v))
    q, k = attn.norm_q(q), attn.norm_k(k)
    for x in (q, k):
        x[:, X:] = apply_rotary_emb(x[:, X:], rotary, sequence_dim=1)
    keyframes = oracle.published_keyframes(T, 4, 0)
    video = oracle.token_mask([oracle.attended_set(T, 3, 1, keyframes, f) for f in range(T)], P)
    mask = torch.ones(X + T * P, X + T * P, dtype=torch.bool)
    mask[X:, X:] = video
    expected = attn.to_out[0](oracle.masked_attention(q, k, v, mask).float().flatten(2))
    with enabled(pipe, FIRST) as session:
        assert session.attention.pattern.parameters["interval"] == 4
        out, text_out = attn(hidden, encoder_hidden_states=encoder, image_rotary_emb=rotary)
    torch.testing.assert_close(out, expected[:, X:], **CLOSE)
    torch.testing.assert_close(text_out, expected[:, :X], **CLOSE)


class Counting(Backend):
    """Counts the (query, key) pairs that a kernel is asked for."""

    name = "counting"

    def __init__(self):
        self.inner, self.pairs = get_backend("sdpa"), 0

    def attend(self, q, k, v, layout, *more, **options):
        self.pairs += layout.pairs
        return self.inner.attend(q, k, v, layout, *more, **options)

    def attend_all(self, q, k, v, *more, **options):
        self.pairs += q.shape[1] * k.shape[1]
        return self.inner.attend_all(q, k, v, *more, **options)


@pytest.mark.parametrize(("kind", "frames"), [("2b", 193), ("5b", 193), ("1.5", 321)])
def test_computes_the_pairs_of_the_pattern_and_no_more(kind, frames, folders):
    pipe = load_cogvideox(kind, folders[kind])
    backend = Counting()
    with enabled(pipe, frames, rotate=False, backend=backend) as session:
        pattern, P = session.attention.pattern, session.attention.grid.tokens_per_frame
        generate(pipe, kind, frames, steps=1)
        calls = session.attention.received.calls
    S, X = pattern.frames * P, TEXT_TOKENS
    video = int(np.asarray(pattern.attended).sum()) * P * P
    assert backend.pairs == calls * (video + 2 * S * X + X * X)
    assert pattern.density < 0.4
    assert backend.pairs < 0.45 * calls * (S + X) ** 2


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_clock_counts_steps_and_starts_again(kind, folders):
    """DDIM and DPM alike: one step of the scheduler ends one denoising step."""
    pipe = load_cogvideox(kind, folders[kind])
    seen = []
    with enabled(pipe, FIRST) as session:
        hook = pipe.transformer.register_forward_hook(
            lambda *_: seen.append(session.attention.step)
        )
        generate(pipe, kind, FIRST)
        generate(pipe, kind, FIRST, guidance=1.0, steps=4)
        hook.remove()
    assert seen == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("2b", {"eta": 0.5}),
        ("5b", {"eta": 0.5}),
        ("2b", {"use_dynamic_cfg": True}),
        ("5b-v2v", {"strength": 0.5, "steps": 4}),
    ],
    ids=["DDIM eta", "DPM eta", "dynamic guidance", "strength"],
)
def test_what_the_scheduler_is_given_still_reaches_it(kind, others, folders):
    """The pipeline reads the signature of ``step``: the noise of it comes from the generator."""
    pipe = load_cogvideox(kind, folders[kind])
    stock = generate(pipe, kind, 49, **others)
    torch.manual_seed(77)
    with enabled(pipe, 49):
        torch.testing.assert_close(generate(pipe, kind, 49, **others), stock, **CLOSE)


def test_fused_projections_and_unfused_again(folders, one_process):
    pipe = load_cogvideox("5b", folders["5b"])
    pipe.fuse_qkv_projections()
    with enabled(pipe, FIRST):
        # Only the fused layers may be in use now.
        kept = [block.attn1.to_q for block in pipe.transformer.transformer_blocks]
        for block in pipe.transformer.transformer_blocks:
            block.attn1.to_q = None
        torch.testing.assert_close(generate(pipe, "5b", FIRST), one_process["5b"], **CLOSE)
        for block, to_q in zip(pipe.transformer.transformer_blocks, kept, strict=True):
            block.attn1.to_q = to_q
    pipe.unfuse_qkv_projections()
    for block in pipe.transformer.transformer_blocks:
        # Left behind by diffusers, and no longer what the model computes with.
        block.attn1.to_qkv.weight.data.zero_()
    with enabled(pipe, FIRST):
        torch.testing.assert_close(generate(pipe, "5b", FIRST), one_process["5b"], **CLOSE)
