"""One session, videos of any length and size; or of one, and no other."""

import logging

import pytest
import torch
from torch import distributed as dist

import lvsa
from lvsa.adapters.wan import WanAdapter
from lvsa.attention import TABLES_KEPT
from lvsa.cp_plans import trial
from lvsa.errors import DivisibilityError, LVSAError, PlanError, RankMismatch, SequenceError
from tests.support import tiny_cogvideox, tiny_hunyuan
from tests.support.errors import refuses
from tests.support.plans import changed, split
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
# 12 × 2 × 3, 24 × 2 × 2 and 24 × 1 × 4 tokens: the last two are equally many.
SIZES = [
    {"num_frames": 45, "height": 32, "width": 48},
    {"num_frames": 93, "height": 32, "width": 32},
    {"num_frames": 93, "height": 16, "width": 64},
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def enable(pipe, **more):
    return lvsa.enable(pipe, **{"settings": SETTINGS, **more})


def one_session_each(rank, world, order, exchange="needed", **options):
    videos = []
    for i in order:
        pipe = wan_pipeline(two_transformers=True)
        with enable(pipe, **SIZES[i], exchange=exchange, **options):
            videos.append(wan_latents(pipe, **SIZES[i]))
    return videos


def one_session(rank, world, order, exchange="needed", **options):
    pipe = wan_pipeline(two_transformers=True)
    with enable(pipe, exchange=exchange, **options) as session:
        engine, videos = session.attention, []
        for i in order:
            videos.append(wan_latents(pipe, **SIZES[i]))
            assert session.attention is engine
            assert engine.grid == session.adapter.grid(**SIZES[i], pipe=pipe)
            assert not engine.pattern.is_dense
        return videos


ORDER = (0, 1, 2, 0)


@pytest.fixture(scope="module")
def alone():
    return one_session_each(0, 1, ORDER)


@pytest.mark.parametrize(
    ("world", "exchange"), [(1, "needed"), (2, "needed"), (2, "ring"), (4, "all_gather")]
)
def test_a_session_serves_several_lengths_and_sizes(world, exchange, alone):
    for videos in run_ranks(world, one_session, ORDER, exchange):
        for video, expected in zip(videos, alone, strict=True):
            torch.testing.assert_close(video, expected, **CLOSE)


def riflex_by_turns(rank, world):
    return one_session(rank, world, (1, 0, 2), riflex=True, riflex_k=1)


def test_riflex_follows_the_length():
    """24 latent frames are longer than the horizon of 21, 12 are not: then nothing is lowered."""
    expected = one_session_each(0, 1, (1, 0, 2), riflex=True, riflex_k=1)
    for videos in (riflex_by_turns(0, 1), *run_ranks(2, riflex_by_turns)):
        for video, one in zip(videos, expected, strict=True):
            torch.testing.assert_close(video, one, **CLOSE)
    plain = one_session_each(0, 1, (1, 0))
    assert (expected[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(expected[1], plain[1], **CLOSE)


def test_riflex_is_set_once_a_length_and_given_back(caplog):
    pipe = wan_pipeline()
    own = pipe.transformer.rope.freqs_cos
    with enable(pipe, riflex=True, riflex_k=1) as session, caplog.at_level(logging.INFO, "lvsa"):
        assert session.riflex is None
        for i, frames in ((1, 24), (2, 24), (0, 12), (1, 24)):
            wan_latents(pipe, **SIZES[i], steps=1)
            assert session.riflex.test_frames == frames
    assert pipe.transformer.rope.freqs_cos is own
    said = [record.message for record in caplog.records if "RIFLEx" in record.message]
    assert len(said) == 3


FAMILIES = {
    "hunyuan15": (tiny_hunyuan.hunyuan_pipeline, [(37, 32, 48), (45, 32, 32)]),
    "cogvideox": (lambda: tiny_cogvideox.cogvideox_pipeline("1.5"), [(81, 32, 96), (97, 32, 64)]),
}


def latents(pipe, size):
    pipe.set_progress_bar_config(disable=True)
    if "CogVideoX" in type(pipe).__name__:
        size = {**size, "max_sequence_length": tiny_cogvideox.TEXT_TOKENS}
    return pipe(
        prompt="a red circle",
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **size,
    ).frames


def family_by_turns(rank, world, family):
    make, sizes = FAMILIES[family]
    sizes = [dict(zip(("num_frames", "height", "width"), size, strict=True)) for size in sizes]
    pipe = make()
    settings = lvsa.LVSASettings(window_size=8, n_first_frames=8, key_frame_interval=24)
    videos = []
    with lvsa.enable(pipe, settings=settings) as session:
        for size in sizes:
            videos.append(latents(pipe, size))
            assert session.attention.grid.frames == session.adapter.grid(**size, pipe=pipe).frames
    for size in sizes:
        with lvsa.enable(pipe, **size, settings=settings):
            videos.append(latents(pipe, size))
    return videos


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_its_sizes(family):
    alone = family_by_turns(0, 1, family)
    for videos in (alone, *run_ranks(2, family_by_turns, family)):
        for video, expected in zip(videos, [*alone[2:], *alone[2:]], strict=True):
            torch.testing.assert_close(video, expected, **CLOSE)


# What is kept, and what is made anew


def test_patterns_and_trials_are_made_once_a_size():
    run_ranks(2, made_once)


def made_once(rank, world):
    pipe = wan_pipeline()
    trials = []
    with pytest.MonkeyPatch.context() as patch:
        run = trial.trial_run
        patch.setattr(trial, "trial_run", lambda *args: trials.append(args[2]) or run(*args))
        with enable(pipe) as session:
            assert trials == []
            patterns = []
            for i in (0, 1, 0, 1):
                wan_latents(pipe, **SIZES[i], steps=2)
                patterns.append(session.attention.pattern)
    assert [grid.frames for grid in trials] == [12, 24]
    assert patterns[0] is patterns[2] and patterns[1] is patterns[3]


def test_a_few_sizes_are_kept_and_no_more():
    pipe = wan_pipeline()
    made = []
    lengths = [4 * i + 1 for i in range(1, TABLES_KEPT + 2)]
    with pytest.MonkeyPatch.context() as patch, enable(pipe):
        make = lvsa.LVSASettings.pattern
        patch.setattr(
            lvsa.LVSASettings,
            "pattern",
            lambda self, frames, *more: made.append(frames) or make(self, frames, *more),
        )
        for length in (*lengths, lengths[-1], lengths[1], lengths[0]):
            wan_latents(pipe, num_frames=length, height=16, width=16, steps=1)
    assert made == [2, 3, 4, 5, 6, 2]


# What is refused


@pytest.mark.parametrize(
    ("given", "values"),
    [
        # As many tokens as were enabled for; and another number of them.
        ({"num_frames": 93, "height": 16, "width": 64}, (24, 1, 4, 16, 64)),
        ({"num_frames": 93, "height": 64, "width": 16}, (24, 4, 1, 64, 16)),
        ({"num_frames": 45, "height": 32, "width": 64}, (12, 2, 4, 45, 64)),
        ({"num_frames": 97, "height": 32, "width": 32}, (25, 2, 2, 97)),
    ],
)
def test_another_size_than_enabled_for_is_refused(given, values):
    pipe = wan_pipeline()
    with enable(pipe, **SIZES[1]):
        with refuses(SequenceError, 24, 2, 93, 32, *values):
            wan_latents(pipe, **given)
        wan_latents(pipe, **SIZES[1])


def test_a_pattern_of_ones_own_is_for_its_length_alone():
    pipe = wan_pipeline()
    with lvsa.enable(pipe, pattern=lvsa.published(12, interval=4)):
        wan_latents(pipe, **SIZES[0])
        with refuses(SequenceError, 12, 24):
            wan_latents(pipe, **SIZES[1])
        wan_latents(pipe, **SIZES[0])
    with refuses(SequenceError, 12, 24):
        lvsa.enable(pipe, **SIZES[1], pattern=lvsa.published(12, interval=4))


class Silent(WanAdapter):
    """A model whose forward does not tell the size of its video."""

    def read_grid(self, pipe, transformer, arguments):
        return None


def test_a_size_that_cannot_be_told_must_be_given():
    pipe = wan_pipeline()
    expected = one_session_each(0, 1, (0,))[0]
    with enable(pipe, adapter=Silent()), refuses(SequenceError, "num_frames", "WanPipeline"):
        wan_latents(pipe, **SIZES[0])
    two = wan_pipeline(two_transformers=True)
    with enable(two, **SIZES[0], adapter=Silent()):
        torch.testing.assert_close(wan_latents(two, **SIZES[0]), expected, **CLOSE)
        with refuses(SequenceError, 12, 6, 72):
            wan_latents(two, num_frames=49, height=32, width=48)


def refused_on_ranks(rank, world):
    """Each refusal is alike on all ranks, and the session goes on after it."""
    pipe = wan_pipeline()
    with enable(pipe):
        expected = wan_latents(pipe, **SIZES[0])
        with refuses(DivisibilityError, 3, 9, world):
            wan_latents(pipe, num_frames=5, height=16, width=16 * 9)
        torch.testing.assert_close(wan_latents(pipe, **SIZES[0]), expected)
    with enable(pipe, **SIZES[1]), refuses(SequenceError, 24, 12):
        wan_latents(pipe, **SIZES[0])
    with enable(pipe, replicate=False):
        mine = SIZES[1] if rank else SIZES[0]
        with refuses(RankMismatch, "grid", "12 × 2 × 3", "24 × 2 × 2"):
            wan_latents(pipe, **mine)
        wan_latents(pipe, **SIZES[0])


def test_what_is_refused_is_refused_on_all_ranks():
    run_ranks(4, refused_on_ranks)


class Misfit(WanAdapter):
    """A plan that cuts channels instead of tokens."""

    def model_plan(self, pipe, transformer):
        plan = super().model_plan(pipe, transformer)
        return changed(plan, blocks__0={"hidden_states": split(2)})


def misfit(rank, world):
    """It is met in the first forward, before anything is cut, or at once where sizes are given."""
    pipe = wan_pipeline()
    ran = []
    pipe.transformer.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    with enable(pipe, adapter=Misfit()), refuses(PlanError, 24, 72):
        wan_latents(pipe, **SIZES[0])
    with refuses(PlanError, 24, 72):
        enable(pipe, **SIZES[0], adapter=Misfit())
    assert ran == []
    dist.barrier()


def test_plans_are_held_against_every_new_size():
    run_ranks(2, misfit)


def test_an_engine_without_a_grid_refuses_to_attend():
    session = enable(wan_pipeline())
    q = torch.zeros(1, 6, 2, 4)
    with refuses(SequenceError, "pattern", "grid"):
        session.attention(q, q, q)
    session.remove()
    assert issubclass(SequenceError, LVSAError)
