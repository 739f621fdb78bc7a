"""Networks leave the device when they are done, give all of their memory back, and come back."""

import json
import weakref

import numpy as np
import pytest
import torch

from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.meter import Meter, forget_peak, largest_peak, merged, peak_memory
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.records.record import measured, meter_of
from lvsa.launch.requests.lists import requests_of
from lvsa.launch.tuning.residence import Residence
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
PARTS = {"loading", "encoding", "denoising", "decoding", "writing"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = wan_pipeline(two_transformers=True)
    return str(saved(pipe, tmp_path_factory.mktemp("model") / "wan"))


def flags(model, folder, *more):
    return ["--model", model, "--prompt", "a red circle", "--num-frames", "17", "--height", "32",
            "--width", "48", "--steps", "2", "--guidance", "3", "--output-dir", str(folder),
            "--device", "cpu", *more]  # fmt: skip


def storages(*networks):
    """Weak references to what holds the weights."""
    return [weakref.ref(x.untyped_storage()) for network in networks for x in network.parameters()]


def test_what_leaves_for_good_is_free_whoever_refers_to_it():
    pipe = wan_pipeline()
    transformer, encoder = pipe.transformer, pipe.text_encoder
    held = storages(transformer, encoder)
    residence = Residence(pipe, CPU, offloaded=False)
    residence.leave(["text_encoder", "image_encoder", "transformer"], for_good=True)
    assert pipe.transformer is None and pipe.text_encoder is None
    assert all(storage() is None for storage in held)
    assert {x.device.type for x in (*transformer.parameters(), *encoder.buffers())} == {"meta"}
    residence.come_back()
    assert pipe.transformer is None
    assert pipe.vae.device == CPU


def test_what_waits_comes_back():
    pipe = wan_pipeline()
    before, config = dict(pipe.components), dict(pipe.config)
    values = {k: x.clone() for k, x in pipe.transformer.state_dict().items()}
    residence = Residence(pipe, CPU, offloaded=False)
    residence.leave(["text_encoder", "transformer"], for_good=False)
    assert pipe.transformer is None and pipe.text_encoder is None
    residence.come_back()
    assert pipe.components == before and dict(pipe.config) == config
    assert all(torch.equal(x, values[k]) for k, x in pipe.transformer.state_dict().items())


def test_offloading_moves_networks_by_itself():
    pipe = wan_pipeline()
    Residence(pipe, CPU, offloaded=True).leave(["transformer"], for_good=True)
    assert {x.device for x in pipe.transformer.parameters()} == {CPU}


def present(rank, world, arguments):
    """Networks that are there in the first step, and when the video is decoded."""
    from lvsa.launch import finish
    from lvsa.launch.meter import StepTimer

    seen, moments, decode, step = [], [], finish.decode, StepTimer.__call__
    load = generate.load

    def noted(pipe):
        names = ("text_encoder", "transformer", "transformer_2", "vae")
        seen.append([name for name in names if getattr(pipe, name) is not None])

    def loaded(*given):
        made = load(*given)
        moments.append(made.pipe)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "load", loaded)
        patch.setattr(finish, "decode", lambda pipe, *rest: noted(pipe) or decode(pipe, *rest))
        patch.setattr(
            StepTimer, "__call__", lambda self, n: (n == 1 and noted(moments[0])) or step(self, n)
        )
        launched(rank, world, arguments)
    return seen


@pytest.mark.parametrize(
    "more",
    [["--vae-parallel", "off"], ["--vae-tiling"], ["--vae-parallel", "off", "--offload", "model"]],
)
def test_each_network_is_there_while_it_works(model, tmp_path, more):
    first, second = run_ranks(2, present, flags(model, tmp_path, *more))
    experts = ["transformer", "transformer_2"]
    if "--offload" in more:
        assert first == [["text_encoder", *experts, "vae"]] * 2
    else:
        assert first == [[*experts, "vae"], ["vae"]]
    # Tiles are decoded by all ranks.
    assert second == (first if more == ["--vae-tiling"] else [[*experts, "vae"]])


def test_a_list_makes_the_videos_that_single_jobs_make(model, tmp_path):
    given = flags(model, tmp_path / "list", "--seeds", "0", "1", "2")
    generate.run(requests_of(parse(given)), Runtime(0, 1, CPU))
    listed = sorted((tmp_path / "list").glob("*.mp4"))
    assert len(listed) == 3
    for seed, video in enumerate(listed):
        launched(0, 1, flags(model, tmp_path, "--seed", str(seed), "--output-name", "one"))
        assert (tmp_path / "one.mp4").read_bytes() == video.read_bytes()


# Peaks by part


def test_peaks_begin_anew_with_each_part():
    meter = Meter(CPU)
    block = np.ones(200 * 2**20, np.uint8)
    meter.lap("large")
    del block
    forget_peak(CPU)
    meter.lap("small")
    assert meter.peaks["large"]["resident"] - meter.peaks["small"]["resident"] > 150 * 2**20
    assert peak_memory(CPU)["resident"] > 0
    # A part that is done in two jobs keeps the larger figure, and the later seconds.
    again = Meter(CPU, meter.seconds, meter.peaks)
    again.lap("large")
    assert again.peaks["large"] == meter.peaks["large"]
    assert again.peaks["small"] == meter.peaks["small"]


def test_the_largest_of_several_ranks():
    one = {"loading": {"allocated": 3, "reserved": 4}}
    other = {"loading": {"allocated": 2, "reserved": 9}, "decoding": {"allocated": 7}}
    both = merged([one, other])
    assert both == {"loading": {"allocated": 3, "reserved": 9}, "decoding": {"allocated": 7}}
    assert largest_peak(both) == 7 and largest_peak({"a": {"resident": 5}}) == 5


def test_the_record_tells_the_parts_apart(model, tmp_path):
    run_ranks(2, launched, flags(model, tmp_path, "--output-name", "clip", "--keep-latents"))
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["seconds"].keys() == record["peak_memory_by_part"].keys() == PARTS
    for rank in record["ranks"]:
        assert rank["peak_memory_by_part"].keys() == PARTS - {"decoding", "writing"}
        for part, peak in rank["peak_memory_by_part"].items():
            assert peak["resident"] <= record["peak_memory_by_part"][part]["resident"]
    most = max(peak["resident"] for peak in record["peak_memory_by_part"].values())
    assert record["peak_memory_bytes"] == most
    latents = tmp_path / "clip.latents.safetensors"
    generate.run(
        requests_of(parse(["--decode", str(latents), "--output-name", "later"])),
        Runtime(0, 1, CPU),
    )
    later = json.loads((tmp_path / "later.json").read_text())
    assert later["peak_memory_by_part"].keys() == PARTS
    # An earlier version kept latents without such figures.
    older = {"seconds": {"denoising": 1.0}, "peak_memory_bytes": 3}
    meter = meter_of(older, CPU)
    meter.lap("decoding")
    assert measured(older, meter)["peak_memory_by_part"].keys() == {"decoding"}
