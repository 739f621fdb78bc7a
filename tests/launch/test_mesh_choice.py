"""--parallel auto: what is chosen by what, the same on every rank, and what stays as given."""

import json
from dataclasses import replace

import pytest
import torch

from lvsa.hardware import HARDWARE
from lvsa.launch.arguments import parse
from lvsa.launch.config import ProcessesConfig
from lvsa.launch.job import make_job, open_model
from lvsa.launch.meshes.choice import choose, fastest, hardware_here, known_as
from lvsa.launch.notes import without_effect
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.requests.lists import requests_of
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
SIZE = ["--num-frames", "45", "--height", "32", "--width", "64", "--lvsa"]
# Nothing but the link between nodes takes time.
SLOW_LINK = """
name = "slow"
architecture = "cpu"
processors = 1
flops = 1e15
bandwidth = 1e15
memory = 1e9
attention = 1e15
per_node = 2
inside = { name = "in", bandwidth = 1e12, latency = 0 }
between = { name = "out", bandwidth = 1e5, latency = 0, shared = true }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    file = tmp_path_factory.mktemp("hardware") / "slow.toml"
    file.write_text(SLOW_LINK)
    return str(file)


def chosen(model, *more, ranks=4):
    config = parse(["--model", model, "--prompt", "x", *SIZE, "--dry-run", "--ranks", str(ranks),
                    *more])  # fmt: skip
    return choose(requests_of(config), open_model(config), Runtime(0, 1, CPU))


def test_nodes_share_what_travels_least_between_them(model, slow):
    """Two nodes of two ranks: a pass on each, which exchange one output a step."""
    choice = chosen(model, "--hardware", slow)
    taken = choice.processes
    assert (taken.parallel, taken.guidance_parallel) == ("manual", True)
    assert choice == chosen(model, "--hardware", slow)
    alone = chosen(model, "--hardware", slow, "--guidance", "1").processes
    # One pass: what a frame's neighbors need is less than half of all heads' tokens.
    assert (alone.guidance_parallel, alone.ulysses, alone.exchange) == (False, 2, "needed")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--ulysses", "2"], {"ulysses": 2}),
        (["--exchange", "all_gather"], {"exchange": "all_gather"}),
        (["--guidance-parallel"], {"guidance_parallel": True}),
    ],
)
def test_what_is_given_stays(model, slow, given, kept):
    taken = chosen(model, "--hardware", slow, *given).processes
    assert {name: getattr(taken, name) for name in kept} == kept


@pytest.mark.parametrize(
    "more", [[], ["--hardware", "h100"], ["--hardware", "h100", "--num-frames", "49"]]
)
def test_what_cannot_be_predicted_stays_as_given(model, more):
    """No hardware, float32 on a GPU, tokens that divide on no mesh."""
    ranks = 32 if "49" in more else 4
    dtype = ["--dtype", "bfloat16"] if "49" in more else []
    choice = chosen(model, *more, *dtype, "--exchange", "ring", ranks=ranks)
    assert choice.processes.exchange == "ring" and choice.processes.parallel == "auto"
    assert choice.processes.ulysses == ProcessesConfig.ulysses


def test_nothing_is_chosen_where_nothing_is_open(model, slow):
    assert chosen(model, "--hardware", slow, "--parallel", "manual") is None
    assert chosen(model, "--hardware", slow, ranks=1) is None
    again = parse(["--model", model, "--prompt", "x", *SIZE, "--hardware", slow])
    request = replace(requests_of(again)[0], repeats={"config": {}})
    assert choose([request], open_model(again), Runtime(0, 4, CPU)) is None


def test_each_replica_takes_the_mesh_of_its_ranks(model, slow):
    given = ["--hardware", slow, "--seeds", "0", "1"]
    one, two = chosen(model, *given), chosen(model, *given, "--replicas", "2", ranks=8)
    assert two.processes == replace(one.processes, replicas=2, ranks=8)
    assert two.reason == one.reason


def test_a_list_takes_a_mesh_that_makes_all_of_it(model, slow, tmp_path):
    prompts = tmp_path / "list.jsonl"
    lines = [{"prompt": "a"}, {"prompt": "b", "guidance": 1.0}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    config = parse(["--model", model, "--prompts", str(prompts), *SIZE, "--hardware", slow])
    requests = requests_of(config)
    taken = fastest(requests, open_model(config), 4, CPU, replace(HARDWARE["h100"], attention=1e9))
    assert len(requests) == 2 and not taken.processes.guidance_parallel


def test_hardware_is_known_by_its_driver_and_its_nodes():
    names = {
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA B200": "b200",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA H100 PCIe": None,
        "NVIDIA A100 80GB PCIe": None,
        "NVIDIA GH200 480GB": None,
        "NVIDIA H100 NVL": None,
        "Tesla V100-SXM2-16GB": None,
        "cpu": None,
    }
    assert {name: known_as(name) for name in names} == names
    h100, plain = "NVIDIA H100 80GB HBM3", ProcessesConfig()
    found, _ = hardware_here(plain, [("a", h100)] * 4 + [("b", h100)] * 4)
    assert found == replace(HARDWARE["h100"], per_node=4)
    for machine in (
        [("a", h100)] * 3 + [("b", h100)],
        [("a", h100), ("a", "NVIDIA H200")],
        [("a", "cpu")] * 2,
    ):
        assert hardware_here(plain, machine)[0] is None
    named = replace(plain, hardware="a100")
    assert hardware_here(named, [("a", "cpu"), ("b", "cpu")])[0].per_node == 1


def test_ranks_make_the_video_on_what_was_chosen(model, slow, tmp_path):
    given = ["--model", model, "--prompt", "x", *SIZE, "--steps", "2", "--hardware", slow,
             "--guidance", "3", "--output-dir", str(tmp_path), "--output-name", "clip"]  # fmt: skip
    run_ranks(2, launched, given)
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["sequence"]["mesh"]["guidance"] == 2
    assert "2 guidance" in record["sequence"]["parallel"]
    config = record["config"]
    assert config["guidance_parallel"] and config["parallel"] == "manual"


def test_settings_of_several_ranks_are_without_effect_on_one(model, slow):
    for more in (["--parallel", "manual"], ["--hardware", slow]):
        config = parse(["--model", model, "--prompt", "x", *SIZE, *more])
        notes = without_effect(make_job(config, 1, CPU))
        assert [more[0] in note for note in notes].count(True) == 1
        assert not any(more[0] in note for note in without_effect(make_job(config, 2, CPU)))
