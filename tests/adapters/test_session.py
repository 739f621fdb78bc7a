"""A session takes nothing from another, leaves nothing behind, and sees what is exchanged in it."""

import functools

import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from torch.distributed.device_mesh import init_device_mesh

import lvsa
from lvsa.adapters.wan import WanAdapter
from lvsa.clock import follower_of
from lvsa.errors import LVSAError, RankMismatch
from lvsa.mesh import DIMENSIONS
from tests.support.errors import refuses
from tests.support.plans import hooks_of
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline, wan_transformer

SIZE = {"num_frames": 93, "height": 32, "width": 32}  # 24 latent frames, the horizon is 21
SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)


def enable(pipe, **more):
    return lvsa.enable(pipe, **{**SIZE, "settings": SETTINGS, **more})


def state(pipe):
    """All that a session touches on a pipeline."""
    models = [m for m in (pipe.transformer, pipe.transformer_2) if m is not None]
    return {
        "processors": [m.processor for t in models for m in t.modules() if hasattr(m, "processor")],
        "hooks": [hooks_of(model) for model in models],
        "rope": [model.rope.freqs_cos for model in models],
        "scheduler": {name: vars(pipe.scheduler).get(name) for name in ("step", "set_timesteps")},
        "methods": sorted(name for name in vars(pipe) if callable(getattr(type(pipe), name, None))),
    }


# Two sessions


def sharing(pipe, what):
    """A pipeline that has something of another one."""
    if what == "pipeline":
        return pipe
    other = wan_pipeline()
    setattr(other, what, getattr(pipe, what))
    return other


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("pipeline", "WanPipeline"),
        ("transformer", "WanTransformer3DModel"),
        ("scheduler", "UniPCMultistepScheduler"),
    ],
)
def test_a_second_session_is_refused_and_harms_nothing(what, name):
    pipe = wan_pipeline()
    with enable(pipe):
        alone = wan_latents(pipe, **SIZE)
    before = state(pipe)
    other = sharing(pipe, what)
    with enable(pipe, riflex=True, riflex_k=1) as outer:
        during = state(pipe)
        with refuses(LVSAError, name):
            enable(other)
        assert state(pipe) == during
        outer.remove()
    assert state(pipe) == before
    with enable(other):
        # Keyframes follow the steps as if nothing had been before.
        torch.testing.assert_close(wan_latents(other, **SIZE), alone)


def test_a_pipeline_made_of_the_same_parts_is_served_by_its_session():
    pipe = wan_pipeline()
    other = WanVideoToVideoPipeline(
        **{name: part for name, part in pipe.components.items() if name != "transformer_2"}
    )
    with enable(pipe), refuses(LVSAError, "WanTransformer3DModel"):
        enable(other)
    with enable(other):
        pass


# Removal


@pytest.mark.parametrize("riflex", [False, True])
def test_everything_is_given_back(riflex):
    pipe = wan_pipeline(two_transformers=True)
    own = wan_latents(pipe, **SIZE)
    before = state(pipe)
    session = enable(pipe, riflex=riflex, riflex_k=1 if riflex else None)
    assert state(pipe) != before
    wan_latents(pipe, **SIZE)
    session.remove()
    session.remove()
    assert state(pipe) == before
    assert torch.equal(wan_latents(pipe, **SIZE), own)


def test_removal_goes_on_after_an_error_and_raises_the_first():
    pipe = wan_pipeline()
    before = state(pipe)
    session = enable(pipe, riflex=True, riflex_k=1)
    done = []

    def failing(name):
        done.append(name)
        raise KeyError(name)

    session.undo_later(lambda: done.append("last"))
    session.undo_later(functools.partial(failing, "second"))
    session.undo_later(functools.partial(failing, "first"))
    with pytest.raises(KeyError) as caught:
        session.remove()
    assert done == ["first", "second", "last"]
    assert caught.value.args == ("first",)
    assert "'second'" in caught.value.__notes__[0]
    assert state(pipe) == before
    session.remove()


@pytest.mark.parametrize("parts", [("step",), ("step", "set_timesteps")])
def test_what_is_gone_already_does_not_stop_removal(parts):
    pipe = wan_pipeline()
    before = state(pipe)
    session = enable(pipe, riflex=True, riflex_k=1)
    for name in parts:
        delattr(pipe.scheduler, name)
    del pipe.progress_bar
    session.remove()
    assert state(pipe) == before


def test_an_error_while_enabling_leaves_nothing_behind(monkeypatch):
    pipe = wan_pipeline()
    before = state(pipe)
    monkeypatch.setattr(WanAdapter, "install_processor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        enable(pipe, riflex=True, riflex_k=1)
    assert state(pipe) == before
    monkeypatch.undo()
    with enable(pipe):
        pass


def test_the_error_of_a_block_is_the_one_that_is_seen():
    pipe = wan_pipeline()
    before = state(pipe)
    with pytest.raises(ZeroDivisionError), enable(pipe):
        _ = 1 / 0
    assert state(pipe) == before


# A transformer that was exchanged


def other_transformer():
    torch.manual_seed(1)
    return wan_transformer().eval()


def other_scheduler(pipe):
    return type(pipe.scheduler).from_config(pipe.scheduler.config)


@pytest.mark.parametrize("with_scheduler", [False, True])
@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_a_transformer_that_was_exchanged_makes_nothing(name, with_scheduler):
    pipe = wan_pipeline(two_transformers=True)
    other = other_transformer()
    ran = []
    other.register_forward_hook(lambda *_: ran.append(name))
    with enable(pipe):
        own = getattr(pipe, name)
        setattr(pipe, name, other)
        if with_scheduler:
            pipe.scheduler = other_scheduler(pipe)
        with refuses(LVSAError, name, "WanPipeline"):
            wan_latents(pipe, **SIZE)
        assert ran == []
        setattr(pipe, name, own)
        wan_latents(pipe, **SIZE)


def test_a_transformer_that_is_exchanged_between_steps_makes_nothing():
    pipe = wan_pipeline()

    def exchange(pipe, step, timestep, given):
        pipe.transformer = other_transformer()
        return given

    with enable(pipe), refuses(LVSAError, "transformer", "WanPipeline"):
        wan_latents(pipe, **SIZE, callback_on_step_end=exchange)


@pytest.mark.parametrize("change", [{"transformer_2": None}, {"transformer_2": "new"}])
def test_one_transformer_more_or_less_is_an_exchange_too(change):
    pipe = wan_pipeline(two_transformers=change["transformer_2"] is None)
    with enable(pipe):
        pipe.transformer_2 = change["transformer_2"] and other_transformer()
        with refuses(LVSAError, "transformer_2"):
            wan_latents(pipe, **SIZE)


def test_another_scheduler_is_followed():
    pipe = wan_pipeline()
    with enable(pipe) as session:
        expected = wan_latents(pipe, **SIZE)
        first, pipe.scheduler = pipe.scheduler, other_scheduler(pipe)
        torch.testing.assert_close(wan_latents(pipe, **SIZE), expected)
        assert follower_of(pipe.scheduler) is session.clock and follower_of(first) is None


def test_a_scheduler_of_another_session_is_refused_in_a_generation_too():
    pipe, other = wan_pipeline(), wan_pipeline()
    with enable(pipe), enable(other):
        expected = wan_latents(other, **SIZE)
        own, pipe.scheduler = pipe.scheduler, other.scheduler
        with refuses(LVSAError, "UniPCMultistepScheduler"):
            wan_latents(pipe, **SIZE)
        torch.testing.assert_close(wan_latents(other, **SIZE), expected)
        pipe.scheduler = own
        wan_latents(pipe, **SIZE)


def test_processors_that_are_set_between_steps_make_nothing():
    """The steps that are left would run dense."""
    pipe = wan_pipeline()

    def stock(pipe, step, timestep, given):
        attention = pipe.transformer.blocks[1].attn1
        attention.set_processor(type(attention)._default_processor_cls())
        return given

    with enable(pipe), refuses(LVSAError, "blocks.1.attn1", "WanAttnProcessor"):
        wan_latents(pipe, **SIZE, callback_on_step_end=stock)


def test_a_block_that_is_exchanged_makes_nothing():
    pipe = wan_pipeline()
    with enable(pipe):
        pipe.transformer.blocks[0] = other_transformer().blocks[0]
        with refuses(LVSAError, "blocks.0.attn1", "WanAttnProcessor"):
            wan_latents(pipe, **SIZE)


# Arguments


@pytest.mark.parametrize("missing", [["width"], ["num_frames", "height"]])
def test_sizes_come_together(missing):
    with refuses(LVSAError, *missing, *SIZE):
        enable(wan_pipeline(), **dict.fromkeys(missing))


def test_settings_and_a_pattern_exclude_each_other():
    with refuses(LVSAError, "settings", "pattern"):
        enable(wan_pipeline(), pattern=lvsa.dense(24))


def test_execution_device_of_a_pipeline_counts():
    pipe = wan_pipeline()
    assert enable_module().device_of(pipe) == torch.device("cpu")
    for attributes, device in (
        ({"_execution_device": torch.device("meta"), "device": "cpu"}, "meta"),
        ({"device": torch.device("meta")}, "meta"),
        ({}, "cpu"),
    ):
        assert enable_module().device_of(type("Pipe", (), attributes)()).type == device


def enable_module():
    return lvsa.adapters.install.enable


# Ranks that were told different things


def differing(rank, world):
    pipe = wan_pipeline()
    before = state(pipe)
    for name, (mine, theirs) in {
        "settings": (SETTINGS, lvsa.LVSASettings(key_frame_interval=20)),
        "riflex": (True, False),
        "num_frames": (93, 89),
        "replicate": (True, False),
        "exchange": ("needed", "ring"),
    }.items():
        with refuses(RankMismatch, name, mine, theirs):
            enable(pipe, **{name: theirs if rank else mine})
        assert state(pipe) == before
    with torch.no_grad():
        pipe.transformer.blocks[1].attn1.to_q.weight[0, rank] += 1
    with refuses(RankMismatch, "transformer.blocks.1.attn1.to_q.weight"):
        enable(pipe)
    assert state(pipe) == before


def test_arguments_and_weights_must_be_the_same_on_all_ranks():
    run_ranks(2, differing)


# Meshes


def two_videos(rank, world):
    """Each of two groups of ranks makes a video of its own, as long as it likes."""
    meshes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "any name"))
    with refuses(LVSAError, "replica", "any name", *DIMENSIONS):
        enable(wan_pipeline(), mesh=meshes)
    video = meshes.get_local_rank("replica")
    pipe = wan_pipeline()
    with enable(pipe, mesh=meshes["any name"]) as session:
        assert session.attention.world == 2
        latents = wan_latents(pipe, **SIZE, seed=video, steps=2 + video)
    return video, latents


def test_ranks_that_share_a_video_are_those_of_the_mesh():
    pipe = wan_pipeline()
    with enable(pipe):
        alone = [wan_latents(pipe, **SIZE, seed=video, steps=2 + video) for video in (0, 1)]
    for video, latents in run_ranks(4, two_videos):
        torch.testing.assert_close(latents, alone[video], rtol=1e-5, atol=1e-5)
