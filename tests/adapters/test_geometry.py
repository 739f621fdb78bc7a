"""Pixels, frames and tokens: what a grid is, what lies off it, and what a forward tells of it."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel

import lvsa
from lvsa.adapters import get_adapter
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.wan import WanAdapter
from lvsa.errors import GridError, LVSAError
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.tiny import wan_pipeline
from tests.support.tiny_cogvideox import cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline


def grid(num_frames=9, height=32, width=32):
    return get_adapter("wan").grid(num_frames, height, width, wan_pipeline())


def test_a_grid_counts_latent_frames_and_tokens():
    assert grid(45, 32, 48) == FrameGrid(12, 2, 3, 16, 16, 4)
    assert get_adapter("wan").patches_per_frame(32, 48, wan_pipeline()) == 6
    assert grid(1).frames == 1


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"num_frames": 80}, [80, 77, 81]),
        ({"num_frames": 2}, [2, 1, 5]),
        ({"num_frames": 0}, [0, 1]),
        ({"num_frames": -7}, [-7, 1]),
        ({"height": 40}, ["height", 40, 16, 32, 48]),
        ({"width": 500}, ["width", 500, 16, 496, 512]),
        ({"width": 8}, ["width", 8, 16]),
        ({"height": 0}, ["height", 0, 16]),
    ],
)
def test_a_size_off_the_grid_names_the_nearest_that_fit(given, values):
    with refuses(GridError, *values):
        grid(**given)


def test_a_pipeline_without_a_transformer_is_an_error():
    pipe = wan_pipeline()
    pipe.transformer = None
    with refuses(LVSAError, "WanPipeline", "transformer"):
        lvsa.enable(pipe, num_frames=9, height=32, width=32)


def test_a_vae_that_does_not_say_its_factors_is_an_error():
    pipe = SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace(scale_factor_temporal=None)))
    with refuses(LVSAError, "scale_factor_temporal", "temporal_compression_ratio"):
        get_adapter("wan").temporal_factor(pipe)


# What a forward tells


LATENTS = {
    # Batch, channels, then latent frames, rows and columns; CogVideoX has frames before channels.
    "wan": (wan_pipeline, (2, 4, 12, 4, 6), FrameGrid(12, 2, 3, 16, 16, 4)),
    "hunyuan15": (hunyuan_pipeline, (2, 9, 10, 2, 3), FrameGrid(10, 2, 3, 16, 16, 4)),
    "cogvideox": (lambda: cogvideox_pipeline("2b"), (2, 13, 4, 4, 12), (13, 2, 6, 49)),
    "cogvideox-1.5": (lambda: cogvideox_pipeline("1.5"), (2, 22, 4, 4, 12), (11, 2, 6, 81)),
}


@pytest.mark.parametrize("family", LATENTS)
def test_a_grid_is_read_off_the_latents(family):
    make, shape, expected = LATENTS[family]
    adapter, pipe = get_adapter(family.partition("-")[0]), make()
    found = adapter.read_grid(pipe, pipe.transformer, {"hidden_states": torch.zeros(shape)})
    if not isinstance(expected, FrameGrid):
        *counts, video_frames = expected
        assert [found.frames, found.rows, found.columns] == counts
        assert found.video_frames(found.frames) == video_frames
        expected = adapter.grid(video_frames, 32, 96, pipe)
    assert found == expected


def test_a_size_without_positions_is_refused_in_a_forward_too():
    adapter, pipe = get_adapter("cogvideox"), cogvideox_pipeline("1.5")
    with refuses(GridError, 32, 112, 96):
        adapter.read_grid(pipe, pipe.transformer, {"hidden_states": torch.zeros(1, 22, 4, 4, 14)})


class PackedAdapter(WanAdapter):
    """A model of packed latents, like LTX-Video's, by the defaults of the contract."""

    def patch_size(self, pipe):
        return 1, 1, 1


PACKED = {"hidden_states": torch.zeros(1, 60, 8), "num_frames": 5, "height": 3, "width": 4}


def test_packed_latents_tell_their_size_in_other_arguments():
    own = inspect.signature(LTXVideoTransformer3DModel.forward).parameters
    assert set(PACKED) <= set(own)
    found = PackedAdapter().read_grid(wan_pipeline(), None, PACKED)
    assert (found.frames, found.rows, found.columns) == (5, 3, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hidden_states": None},
        {"hidden_states": torch.zeros(1, 60, 8)},
        {**PACKED, "width": None},
        {**PACKED, "width": 5},
        {"hidden_states": torch.zeros(1, 8, 3, 4)},
    ],
    ids=["nothing", "None", "packed alone", "no width", "another number of tokens", "an image"],
)
def test_arguments_that_do_not_tell(arguments):
    assert PackedAdapter().read_grid(wan_pipeline(), None, arguments) is None


def test_image_to_video_pipelines_hold_their_image_in_the_first_frame():
    """The default; what families add is tested with them."""
    adapter = PackedAdapter()
    for name, frames in (("LTXPipeline", ()), ("LTXImageToVideoPipeline", (0,))):
        assert ModelAdapter.condition_frames(adapter, type(name, (), {})(), 5) == frames
