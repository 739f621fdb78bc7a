"""One rank draws noise and encodes inputs for all; or all do, and must agree."""

import inspect

import diffusers
import pytest
import torch

import lvsa
from lvsa.adapters import BUILT_IN, get_adapter
from lvsa.adapters.install.replication import Replication
from lvsa.errors import RankMismatch
from tests.support.errors import refuses
from tests.support.ranks import run_ranks
from tests.support.tiny import wan_latents, wan_pipeline
from tests.support.tiny_cogvideox import TEXT_TOKENS, cogvideox_pipeline, source

SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def noise_of_its_own(rank, world, replicate=True):
    """Ranks whose generators and text encoders differ."""
    pipe = wan_pipeline()
    with torch.no_grad():
        pipe.text_encoder.shared.weight += 0.1 * rank
    with lvsa.enable(pipe, settings=SETTINGS, replicate=replicate):
        return wan_latents(pipe, seed=rank)


def test_library_users_get_one_video_from_all_ranks():
    alone = noise_of_its_own(0, 1)
    for latents in run_ranks(2, noise_of_its_own):
        torch.testing.assert_close(latents, alone, **CLOSE)


def must_agree(rank, world):
    with refuses(RankMismatch, "hidden_states", "encoder_hidden_states"):
        noise_of_its_own(rank, world, replicate=False)


def test_without_it_ranks_must_agree_before_anything_is_cut():
    run_ranks(2, must_agree)


def noise_in_every_step(rank, world, kind):
    """DPM draws noise in every step too: all must go on with the first rank's generator."""
    pipe = cogvideox_pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 96}
    with lvsa.enable(pipe, settings=SETTINGS):
        return pipe(
            prompt="a red circle",
            num_inference_steps=3,
            output_type="latent",
            generator=torch.Generator().manual_seed(rank),
            max_sequence_length=TEXT_TOKENS,
            **size,
            **source(kind, 97, **size),
        ).frames


@pytest.mark.parametrize("kind", ["5b", "5b-i2v"])
def test_generators_stay_together(kind):
    alone = noise_in_every_step(0, 1, kind)
    for latents in run_ranks(2, noise_in_every_step, kind):
        torch.testing.assert_close(latents, alone, **CLOSE)


def given_back(rank, world):
    pipe = wan_pipeline()
    own = inspect.signature(pipe.encode_prompt)
    with lvsa.enable(pipe) as session:
        methods = session.adapter.replicated_methods
        assert "encode_prompt" in methods and "encode_prompt" in vars(pipe)
        assert inspect.signature(pipe.encode_prompt) == own
        assert "check_inputs" not in vars(pipe)
    assert not set(methods) & set(vars(pipe))
    assert inspect.signature(pipe.encode_prompt) == own


def test_methods_are_given_back():
    run_ranks(2, given_back)


def test_one_process_keeps_its_methods():
    pipe = wan_pipeline()
    with lvsa.enable(pipe):
        assert "encode_prompt" not in vars(pipe)


class Drawer:
    """Values of every kind that a pipeline's method may return."""

    def draw(self, generator):
        noise = torch.rand(3, generator=generator)
        return {"noise": noise, "all": [noise > 0.5, (None, noise.half()[1:])], "text": "x"}

    def outer(self, generator):
        return self.draw(generator)["noise"], self.draw(generator)["noise"]


def values_of_every_kind(rank, world):
    drawer, generator = Drawer(), torch.Generator().manual_seed(rank)
    replication = Replication(drawer, ["draw", "outer", "absent"], torch.distributed.group.WORLD)
    assert replication.methods == ["draw", "outer"]
    made = drawer.draw(generator), drawer.outer([generator][0]), generator.get_state()
    stale = drawer.draw
    replication.remove()
    replication.remove()
    # A reference that somebody kept works as the method does, on every rank by itself.
    own = stale(torch.Generator().manual_seed(7 + rank))["noise"]
    assert torch.equal(own, torch.rand(3, generator=torch.Generator().manual_seed(7 + rank)))
    return made


def test_values_of_every_kind_travel():
    generator = torch.Generator().manual_seed(0)
    expected = Drawer().draw(generator), Drawer().outer(generator), generator.get_state()
    for made in run_ranks(2, values_of_every_kind):
        torch.testing.assert_close(made[0]["noise"], expected[0]["noise"], rtol=0, atol=0)
        torch.testing.assert_close(made[1:], expected[1:], rtol=0, atol=0)
        assert made[0]["text"] == "x" and made[0]["all"][1][0] is None
        assert torch.equal(made[0]["all"][0], expected[0]["noise"] > 0.5)
        assert torch.equal(made[0]["all"][1][1], expected[0]["noise"].half()[1:])


@pytest.mark.parametrize("name", BUILT_IN)
def test_methods_that_draw_or_encode_exist(name):
    adapter = get_adapter(name)
    classes = [getattr(diffusers, cls) for cls in adapter.pipelines]
    for method in ("encode_prompt", "prepare_latents"):
        assert method in adapter.replicated_methods
        assert all(hasattr(cls, method) for cls in classes)
    if name != "skyreels":  # which takes Wan's
        assert all(any(hasattr(cls, m) for cls in classes) for m in adapter.replicated_methods)
