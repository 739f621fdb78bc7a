"""Weights that the ranks of a video share: loaded, kept in parts, and the same video."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor

import lvsa
from lvsa.adapters.install.sharded import encoders_are_sharded, is_sharded
from lvsa.errors import CheckpointError, LVSAError
from lvsa.launch import generate
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job, open_model
from lvsa.launch.loading.models import find_model
from lvsa.launch.loading.sharded import load_sharded
from lvsa.launch.loading.unfilled import unfilled_network
from lvsa.launch.loading.weights import load_pipeline, networks
from lvsa.launch.notes import without_effect
from lvsa.launch.processes.reporting import SharedError
from lvsa.launch.rehearsal.networks import networks_of
from lvsa.launch.requests.lists import requests_of
from lvsa.launch.requests.plan import job_of
from lvsa.launch.tuning.prepare import prepare
from lvsa.launch.tuning.residence import Residence
from lvsa.launch.tuning.sharding import shard
from lvsa.mesh import MeshSizes
from tests.launch.test_families import FAMILIES, arguments_for, inputs  # noqa: F401
from tests.support.errors import refuses
from tests.support.launched import runtime_of
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_latents, wan_pipeline
from tests.support.tiny_lora import saved_lora

CPU = torch.device("cpu")
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
SIZE = ["--num-frames", "45", "--height", "32", "--width", "48", "--steps", "3", "--guidance", "3"]
SETTINGS = lvsa.LVSASettings(window_size=4, key_frame_interval=16, rotate_keyframes=True)
SHARE = "--shard-weights"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = wan_pipeline(two_transformers=True)
    return str(saved(pipe, tmp_path_factory.mktemp("models") / "wan"))


def flags(model, out, *more):
    return ["--model", model, "--prompt", "a red circle", *SIZE, "--output-dir", str(out),
            "--output-name", "clip", "--device", "cpu", *SPARSE, *more]  # fmt: skip


# What a rank keeps


def parts(rank, world, arguments):
    """Holds what a rank loads against whole networks, and what it keeps against the estimate."""
    config = parse([*arguments, SHARE])
    runtime, model = runtime_of(rank, world), open_model(config)
    job = job_of(config, model, runtime)
    pipe = load_sharded(job, model, runtime, runtime)
    expected = load_pipeline(job.source, job.dtype, job.adapter)
    transformers = job.adapter.transformers(expected)
    prepare(expected, replace(config.tuning, cache=None), model.loras, transformers, CPU)
    cut = []
    for name, network in networks_of(job).items():
        mine, whole = getattr(pipe, name), getattr(expected, name)
        if not is_sharded(mine):
            continue
        cut.append(name)
        # What modules have in common they have here as well.
        assert [n for n, _ in mine.named_parameters()] == [n for n, _ in whole.named_parameters()]
        kept, full = 0, dict(mine.named_parameters())
        for key, weight in whole.named_parameters():
            x = full[key]
            kept += padded(x, world) if isinstance(x, DTensor) else x.nbytes
            together = x.full_tensor() if isinstance(x, DTensor) else x
            assert together.dtype == weight.dtype and torch.equal(together, weight), key
        buffers = dict(mine.named_buffers())
        for key, buffer in whole.named_buffers():
            assert torch.equal(buffers[key], buffer), key
            kept += buffer.nbytes
        assert network.part(world) == kept < network.bytes
    return cut, encoders_are_sharded(pipe, job.adapter.transformers(pipe))


def padded(x, world):
    """Bytes of the largest part of a tensor that is cut along its first dimension."""
    return -(-x.shape[0] // world) * x[:1].full_tensor().nbytes


@pytest.mark.parametrize(
    ("family", "more", "encoders"),
    [
        ("wan-2.2-t2v", ["--dtype", "bfloat16", "--cache", "taylorseer:2"], ["text_encoder"]),
        ("wan-2.1-i2v", [], ["text_encoder", "image_encoder"]),
        ("hunyuan-i2v", [], ["text_encoder", "text_encoder_2", "image_encoder"]),
        ("cogvideox-2b", ["--dtype", "float16"], ["text_encoder"]),
    ],
)
def test_parts_together_are_the_whole(family, more, encoders, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    arguments = arguments_for(str(saved(build(), tmp_path / "model")), given, inputs, tmp_path)
    for cut, sharded in run_ranks(3, parts, [*arguments, *more]):
        assert sharded and {*encoders} < {*cut}
        assert sum(name.startswith("transformer") for name in cut) == (2 if "2.2" in family else 1)


def test_loras_are_merged_before(model, tmp_path):
    lora = saved_lora(wan_pipeline().transformer, tmp_path / "style.safetensors")
    run_ranks(2, parts, flags(model, tmp_path, "--lora", f"{lora}:0.5:high"))


# The same video


def made(rank, world, arguments):
    """Makes videos. Whole weights are copied from their mapped files: the CPU's matrix products
    round differently by where a matrix begins in memory."""
    load = generate.load

    def loaded(*given):
        found = load(*given)
        for network in (found.pipe.transformer, found.pipe.transformer_2):
            for weight in () if is_sharded(network) else network.parameters():
                weight.data = weight.data.clone()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "load", loaded)
        generate.run(requests_of(parse(arguments)), runtime_of(rank, world))


@pytest.mark.parametrize(
    ("world", "more"),
    [
        (2, ["--guidance-parallel"]),
        (3, ["--cache", "first-block:0.7"]),
        (4, ["--guidance-parallel", "--cache", "first-block:0.7", "--seeds", "0", "1"]),
        (4, ["--replicas", "2", "--seeds", "0", "1", "2"]),
    ],
)
def test_it_changes_no_bit(world, more, model, tmp_path):
    found = []
    for name, share in (("whole", []), ("parts", [SHARE])):
        run_ranks(world, made, flags(model, tmp_path / name, *more, *share))
        found.append([path.read_bytes() for path in sorted((tmp_path / name).glob("*.mp4"))])
        for record in (tmp_path / name).glob("*.json"):
            assert json.loads(record.read_text())["config"]["shard_weights"] == bool(share)
    assert found[0] and found[0] == found[1]


def by_whoever_shards(rank, world):
    """A pipeline whose user called FSDP2, with encoders in parts, and without LVSA's launcher."""
    found = []
    for cut in (False, True):
        pipe = wan_pipeline()
        if cut:
            for network in (pipe.transformer, pipe.text_encoder):
                for block in network.modules():
                    if type(block).__name__ in ("WanTransformerBlock", "UMT5Block"):
                        torch.distributed.fsdp.fully_shard(block)
            # Of the encoder its blocks alone.
            torch.distributed.fsdp.fully_shard(pipe.transformer)
        with lvsa.enable(pipe, settings=SETTINGS):
            found.append(wan_latents(pipe))
    return found


def test_library_users_may_share_weights_themselves():
    for whole, in_parts in run_ranks(2, by_whoever_shards):
        assert torch.equal(whole, in_parts)


def root_in_parts(rank, world):
    pipe = wan_pipeline()
    torch.distributed.fsdp.fully_shard(pipe.transformer)
    mesh = MeshSizes(guidance=2).device_mesh("cpu")
    with refuses(LVSAError, "transformer.scale_shift_table", "guidance"):
        lvsa.enable(pipe, settings=SETTINGS, mesh=mesh)


def test_passes_at_once_do_not_wait_for_weights_of_one_another():
    run_ranks(2, root_in_parts)


# What goes wrong


def in_the_middle(rank, world):
    """A forward that fails within a block; then the same one again."""
    pipe = wan_pipeline()
    expected = wan_latents(pipe, steps=2)
    shard(pipe.transformer, dist.group.WORLD, "cpu", whole=True)

    def fails(*_):
        raise LVSAError("here")

    handle = pipe.transformer.blocks[1].attn1.register_forward_pre_hook(fails)
    with refuses(LVSAError, "here"):
        wan_latents(pipe, steps=2)
    handle.remove()
    again = wan_latents(pipe, steps=2)
    cut = [isinstance(x, DTensor) for x in pipe.transformer.blocks.parameters()]
    return torch.equal(again, expected), all(cut)


def test_a_network_runs_again_after_a_forward_that_failed():
    assert run_ranks(2, in_the_middle) == [(True, True)] * 2


def broken(rank, world, arguments, *named):
    with refuses(SharedError, *named):
        made(rank, world, [*arguments, SHARE])


def test_a_broken_checkpoint_stops_all_ranks(model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    (file,) = (folder / "transformer_2").glob("*.safetensors")
    weights = load_file(file)
    del weights["proj_out.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    run_ranks(2, broken, flags(str(folder), tmp_path), "transformer_2", "proj_out.bias")
    shutil.rmtree(folder / "text_encoder")
    run_ranks(2, broken, flags(str(folder), tmp_path), "text_encoder")


def test_a_network_that_is_not_that_of_its_config(model):
    """As one whose weights were quantized, with scales beside them."""
    source = find_model(model)
    (cls,) = [cls for name, cls in networks(source) if name == "text_encoder"]
    names = dict(unfilled_network(source, "text_encoder", cls).named_parameters())
    dtypes = {**dict.fromkeys(names, torch.float32), "shared.scale": torch.float32}
    with refuses(CheckpointError, "text_encoder", cls.__name__, SHARE, "shared.scale"):
        unfilled_network(source, "text_encoder", cls, dtypes)


def test_what_it_does_not_go_together_with(model, tmp_path):
    for more, named in (
        (["--offload", "model"], ["--offload model", SHARE]),
        (["--offload", "group"], ["--offload group", SHARE]),
        (["--cache", "sea:0.5"], ["--cache sea:0.5", SHARE, "first-block", "taylorseer"]),
    ):
        with refuses(LVSAError, *named):
            make_job(parse(flags(model, tmp_path, SHARE, *more)), 2, CPU)
        # One rank cuts nothing.
        make_job(parse(flags(model, tmp_path, SHARE, *more)), 1, CPU)


def test_one_rank_has_nobody_to_share_with(model, tmp_path):
    def notes(world, *more):
        job = make_job(parse(flags(model, tmp_path, SHARE, *more)), world, CPU)
        return [note for note in without_effect(job) if SHARE in note]

    assert len(notes(1)) == 1 and len(notes(2, "--replicas", "2")) == 1
    assert notes(2) == [] and notes(2, "--guidance-parallel") == []


# When they leave


def leaving(rank, world):
    pipe = wan_pipeline()
    for network in (pipe.transformer, pipe.text_encoder):
        shard(network, dist.group.WORLD, "cpu", whole=network is pipe.transformer)
    with lvsa.enable(pipe, settings=SETTINGS):
        wan_latents(pipe)
    residence, transformer = Residence(pipe, CPU, offloaded=False), pipe.transformer
    residence.leave(["transformer", "text_encoder"], for_good=False)
    assert pipe.transformer is transformer and pipe.text_encoder is not None, "parts stay"
    held = [
        (x.to_local() if isinstance(x, DTensor) else x.data).untyped_storage()
        for network in (pipe.transformer, pipe.text_encoder)
        for x in network.parameters()
    ]
    before = sum(storage.nbytes() for storage in held)
    residence.leave(["transformer", "text_encoder"], for_good=True)
    return before, sum(storage.nbytes() for storage in held), pipe.transformer


def test_parts_leave_for_good_and_are_free_whoever_refers_to_them():
    for before, after, transformer in run_ranks(2, leaving):
        assert before > 0 and after == 0 and transformer is None
