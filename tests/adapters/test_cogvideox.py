"""CogVideoX through the library call: each published kind, on 1 to 4 ranks."""

import contextlib
import logging

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

import lvsa
from lvsa.adapters import adapter_for
from lvsa.adapters.cogvideox import CogVideoXAdapter, decoded_frames
from lvsa.adapters.install.replication import Replication
from lvsa.backends import get_backend
from lvsa.backends.base import Backend
from lvsa.cp_plans import plan_for
from lvsa.cp_plans.trial import validate_plan
from lvsa.errors import DivisibilityError, GridError, LVSAError, RankMismatch, SequenceError
from tests.support import oracle
from tests.support.ranks import run_ranks
from tests.support.tiny import saved
from tests.support.tiny_cogvideox import (
    KINDS,
    TEXT_TOKENS,
    cogvideox_pipeline,
    cogvideox_vae,
    load_cogvideox,
    picture,
    source,
)

SIZE = {"height": 32, "width": 96}  # 2 × 6 tokens a frame
# Twice the horizon. 25 frames of 12 tokens among 2, 3 and 4 ranks: every cut falls in a frame, as
# it does for 21 frames (161 video frames of 1.5) among 2 and 4 ranks.
FIRST, SECOND, SECOND_V2V = 97, 161, 160
LONG = {kind: SECOND if kind.startswith("1.5") else FIRST for kind in KINDS}
LONG["1.5-v2v"] = SECOND_V2V
AT_HORIZON = {kind: 81 if kind.startswith("1.5") else 49 for kind in KINDS}
AT_HORIZON["1.5-v2v"] = 80
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every kind as a pipeline saved to disk."""
    return {
        kind: str(saved(cogvideox_pipeline(kind), tmp_path_factory.mktemp(kind))) for kind in KINDS
    }


def generate(pipe, kind, num_frames, *, seed=0, guidance=3.0, steps=3, size=None, **others):
    size = size or SIZE
    given = {
        "prompt": "a red circle",
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
        "max_sequence_length": TEXT_TOKENS,
        **size,
        **source(kind, num_frames, **size),
        **others,
    }
    return pipe(**given).frames


def enabled(pipe, num_frames, *, size=None, settings=None, rotate=True, **others):
    """LVSA with the family's defaults, keyframes rotating."""
    if settings is None:
        settings = lvsa.LVSASettings(rotate_keyframes=rotate)
    return lvsa.enable(pipe, num_frames=num_frames, **(size or SIZE), settings=settings, **others)


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
        assert session.attention.pattern.interval == 4
        out, text_out = attn(hidden, encoder_hidden_states=encoder, image_rotary_emb=rotary)
    torch.testing.assert_close(out, expected[:, X:], **CLOSE)
    torch.testing.assert_close(text_out, expected[:, :X], **CLOSE)


class Counting(Backend):
    """Counts the (query, key) pairs that a kernel is asked for."""

    name = "counting"

    def __init__(self):
        self.inner, self.pairs = get_backend("sdpa"), 0

    def attend(self, q, k, v, layout, scale=None):
        self.pairs += layout.pairs
        return self.inner.attend(q, k, v, layout, scale)


@pytest.mark.parametrize(("kind", "frames"), [("2b", 193), ("5b", 193), ("1.5", 321)])
def test_computes_the_pairs_of_the_pattern_and_no_more(kind, frames, folders):
    pipe = load_cogvideox(kind, folders[kind])
    backend = Counting()
    with enabled(pipe, frames, rotate=False, backend=backend) as session:
        pattern, P = session.attention.pattern, session.attention.grid.tokens_per_frame
        generate(pipe, kind, frames, steps=1)
        calls = session.attention.received.calls
    S, X = pattern.frames * P, TEXT_TOKENS
    video = int(pattern.attended.sum()) * P * P
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


def other_noise(rank, world, folder):
    pipe = load_cogvideox("1.5", folder)
    with enabled(pipe, SECOND), contextlib.suppress(RankMismatch):
        generate(pipe, "1.5", SECOND, seed=rank)
        return "denoised"
    return "stopped"


def test_other_noise_on_a_rank_stops_all_ranks(folders):
    assert run_ranks(2, other_noise, folders["1.5"]) == ["stopped", "stopped"]


def one_rank_draws(rank, world, kind, folder):
    pipe = load_cogvideox(kind, folder)
    with enabled(pipe, LONG[kind]) as session:
        replication = Replication(pipe, session.adapter.replicated_methods, session.attention.group)
        assert replication.methods == ["encode_prompt", "prepare_latents"]
        return generate(pipe, kind, LONG[kind], seed=rank)


@pytest.mark.parametrize("kind", ["5b", "1.5-i2v"])
def test_one_rank_may_draw_and_encode_for_all(kind, folders, one_process):
    """DPM draws noise in every step too: all ranks must go on with the first one's generator."""
    for latents in run_ranks(2, one_rank_draws, kind, folders[kind]):
        torch.testing.assert_close(latents, one_process[kind], **CLOSE)


# Geometry


def test_vae_decodes_the_frames_that_the_grid_says():
    vae = cogvideox_vae().eval()
    with torch.no_grad():
        for latent in range(1, 8):
            decoded = vae.decode(torch.zeros(1, 4, latent, 2, 2)).sample.shape[2]
            assert decoded == decoded_frames(latent, 4)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("5b", (1, 9, 16)), ("1.5", (1, 9, 16)), ("5b-v2v", (9, 16)), ("1.5-v2v", (16,))],
)
def test_videos_come_back_as_long_as_asked(kind, lengths, folders):
    pipe = load_cogvideox(kind, folders[kind])
    size = {"height": 16, "width": 16}
    for length in lengths:
        with enabled(pipe, length, size=size) as session:
            video = generate(pipe, kind, length, size=size, steps=2, output_type="np")
            grid = session.attention.grid
        assert video.shape[1] == length == grid.video_frames(grid.frames)


@pytest.mark.parametrize(
    ("kind", "video", "tokens"),
    [
        ("2b", 49, 13),
        ("2b", 48, 12),
        ("5b", 97, 25),
        ("5b-v2v", 49, 13),
        ("1.5", 81, 11),
        ("1.5", 80, 10),
        ("1.5", 161, 21),
        ("1.5-i2v", 81, 11),
        ("1.5-v2v", 80, 10),
    ],
)
def test_frames_of_tokens(kind, video, tokens, folders):
    pipe = load_cogvideox(kind, folders[kind])
    adapter = adapter_for(type(pipe))
    grid = adapter.grid(video, 32, 96, pipe)
    assert (grid.frames, grid.rows, grid.columns) == (tokens, 2, 6)
    assert grid.video_frames(tokens) == video
    deep = kind.startswith("1.5")
    assert adapter.patch_size(pipe) == (2 if deep else 1, 2, 2)
    assert adapter.temporal_factor(pipe) == (8 if deep else 4)
    assert adapter.training_horizon(pipe) == (11 if deep else 13)
    assert adapter.condition_frames(pipe, tokens) == ((0,) if kind.endswith("i2v") else ())


@pytest.mark.parametrize(
    ("kind", "video", "message"),
    [
        ("2b", 45, r"45 frames are not 8k or 8k \+ 1, .*; nearest: 41 or 48"),
        ("2b", 47, "nearest: 41 or 48"),
        ("5b", 50, "nearest: 49 or 56"),
        ("5b", 5, "nearest: 1 or 8"),
        ("2b", 0, "nearest: 1$"),
        ("2b", -3, "-3 frames .* nearest: 1$"),
        ("1.5", 85, r"85 frames are not 8k or 8k \+ 1, .*; nearest: 81 or 88"),
        ("1.5-v2v", 81, "81 frames are not 8k, which video-to-video .* multiple of 2; .*80 or 88"),
        ("1.5-v2v", 1, "nearest: 8$"),
    ],
)
def test_lengths_off_the_grid_are_errors(kind, video, message, folders):
    pipe = load_cogvideox(kind, folders[kind])
    with pytest.raises(GridError, match=message):
        lvsa.enable(pipe, num_frames=video, **SIZE)


def test_the_pipeline_refuses_what_the_adapter_refuses_of_video_to_video(folders):
    pipe = load_cogvideox("1.5-v2v", folders["1.5-v2v"])
    with pytest.raises(ValueError, match="number of latent frames must be divisible"):
        generate(pipe, "1.5-v2v", 81)


def test_sizes_off_the_grid_are_errors(folders):
    adapter = CogVideoXAdapter()
    pipe = load_cogvideox("2b", folders["2b"])
    with pytest.raises(GridError, match=r"height is 40 pixels; .* multiple of 16 .* 32 or 48"):
        adapter.grid(49, 40, 96, pipe)
    pipe = load_cogvideox("5b-i2v", folders["5b-i2v"])
    with pytest.raises(GridError, match=r"48 × 96 pixels: .* learned .* for 32 × 96 and makes no"):
        adapter.grid(97, 48, 96, pipe)
    pipe = load_cogvideox("1.5", folders["1.5"])
    with pytest.raises(GridError, match="largest height 32, largest width 96"):
        adapter.grid(81, 32, 112, pipe)


def test_learned_positions_of_another_length_are_said(folders, caplog):
    pipe = load_cogvideox("5b-i2v", folders["5b-i2v"])
    with caplog.at_level(logging.WARNING, logger="lvsa.adapters.cogvideox"):
        CogVideoXAdapter().grid(97, 32, 96, pipe)
        assert not caplog.messages
        CogVideoXAdapter().grid(193, 32, 96, pipe)
    assert "are for 97 frames; for 193 diffusers puts sinusoidal ones" in caplog.text


def test_divisibility_names_lengths_that_the_vae_makes(folders):
    """Five ranks and 12 tokens a frame: only multiples of 5 frames of tokens divide."""
    adapter = CogVideoXAdapter()
    for kind, given, named in (
        ("2b", 49, r"frames: 40 \(10 latent\), 57 \(15 latent\)"),
        ("1.5", 81, r"frames: 73 \(10 latent\), 113 \(15 latent\)"),
        ("1.5", 88, r"frames: 80 \(10 latent\), 120 \(15 latent\)"),
        ("1.5-v2v", 88, r"frames: 80 \(10 latent\), 120 \(15 latent\)"),
    ):
        pipe = load_cogvideox(kind, folders[kind])
        grid = adapter.grid(given, 32, 96, pipe)
        with pytest.raises(DivisibilityError, match=named):
            lvsa.Shards(grid, 5)


def test_defaults_are_whole_frames_of_tokens(folders):
    adapter = CogVideoXAdapter()
    for kind, expected in (("2b", (3, 1)), ("1.5", (2, 1))):
        factor = adapter.temporal_factor(load_cogvideox(kind, folders[kind]))
        pattern = lvsa.LVSASettings().pattern(40, factor, 11)
        assert (pattern.window, pattern.n_first) == expected


# Calls


def test_another_length_than_enabled_is_an_error(folders):
    pipe = load_cogvideox("1.5", folders["1.5"])
    with (
        enabled(pipe, 81),
        pytest.raises(SequenceError, match=r"T = 11 latent frames × P = 12 tokens = 132"),
    ):
        generate(pipe, "1.5", 97)


def test_call_arguments(folders):
    adapter = CogVideoXAdapter()
    text = load_cogvideox("2b", folders["2b"])
    given = {"prompt": "x", "num_frames": 49, "height": 32}
    # As many text tokens as the transformer has positions for.
    length = {"max_sequence_length": text.transformer.config.max_text_seq_length}
    assert adapter.call_arguments(text, given) == {**given, **length}
    video = load_cogvideox("5b-v2v", folders["5b-v2v"])
    pictures = [picture(16, 16)] * 9
    made = adapter.call_arguments(video, {"prompt": "x", "video": pictures, "num_frames": 9})
    assert made == {"prompt": "x", "video": pictures, **length}
    with pytest.raises(LVSAError, match="CogVideoXVideoToVideoPipeline was given no video"):
        adapter.call_arguments(video, given)
    with pytest.raises(GridError, match="the video has 9 frames and 49 were asked for"):
        adapter.call_arguments(video, {**given, "video": pictures})


def test_known_models(folders):
    adapter = CogVideoXAdapter()
    names = {}
    for kind in KINDS:
        pipe = load_cogvideox(kind, folders[kind])
        known = adapter.known_model(pipe)
        names[kind] = known.name
        assert known.horizon == adapter.training_horizon(pipe)
        for method in adapter.replicated_methods:
            assert callable(getattr(pipe, method))
    assert names == {
        "2b": "CogVideoX-2b",
        "5b": "CogVideoX-5b",
        "5b-i2v": "CogVideoX-5b-I2V",
        "5b-v2v": "CogVideoX-5b",
        "1.5": "CogVideoX1.5-5B",
        "1.5-i2v": "CogVideoX1.5-5B-I2V",
        "1.5-v2v": "CogVideoX1.5-5B",
    }


@pytest.mark.parametrize("known", CogVideoXAdapter.known_models, ids=lambda known: known.name)
def test_defaults_of_known_models_are_their_training_videos(known):
    kind = ("1.5" if "1.5" in known.name else "5b") + ("-i2v" if "I2V" in known.name else "")
    sample = {"sample_height": 96, "sample_width": 170} if "1.5" in known.name else {}
    pipe = cogvideox_pipeline(kind, **{"sample_height": 60, "sample_width": 90, **sample})
    given = known.defaults
    grid = CogVideoXAdapter().grid(given.num_frames, given.height, given.width, pipe)
    assert grid.frames == known.horizon


@pytest.mark.parametrize("kind", KINDS)
def test_plan_fits(kind, folders):
    pipe = load_cogvideox(kind, folders[kind])
    grid = CogVideoXAdapter().grid(LONG[kind], 32, 96, pipe)
    validate_plan(pipe.transformer, plan_for(pipe.transformer), grid)
