"""Offloading, tiling, compiling and step caches of every family, through the launcher itself."""

import gzip
import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.notes import without_effect
from lvsa.launch.tuning import prepare as preparing
from lvsa.launch.tuning.caches import CACHES, parse_cache
from tests.launch.test_families import FAMILIES, SPARSE, arguments_for, inputs  # noqa: F401
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline, wan_transformer
from tests.support.tiny_lora import saved_lora

CPU = torch.device("cpu")
STEPS = ["--steps", "5"]
# Caches of each family, with numbers at which some steps are skipped, and options beside them.
TUNED = {
    "wan-2.1-i2v": ["first-block:0.9 --offload group", "taylorseer:2 --offload model"],
    "wan-2.2-t2v": ["sea:2 --vae-tiling"],
    "wan-vace": ["taylorseer:2 --offload group"],
    "skyreels-i2v": ["first-block:0.9 --offload model"],
    "hunyuan-t2v": ["first-block:0.9 --offload group", "taylorseer:2"],
    "hunyuan-i2v": ["first-block:0.9 --compile --shard-weights"],
    "cogvideox-2b": ["first-block:0.9 --compile", "pyramid:2 --offload group --vae-tiling"],
    "cogvideox-1.5": ["taylorseer:2 --offload model"],
}


def calls(record):
    return [rank["attention_calls"] for rank in json.loads(record.read_text())["ranks"]]


def tuned(rank, world, arguments):
    """Frames on the first rank, latents on the others, with blocks that PyTorch's kernels run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "COMPILER", "eager")
        return launched(rank, world, arguments)


@pytest.mark.parametrize("family", TUNED)
def test_a_tuned_video_is_that_of_one_process(family, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    arguments = arguments_for(str(saved(build(), tmp_path / "model")), given, inputs, tmp_path)
    for options in TUNED[family]:
        cache, *others = options.split()
        one = launched(0, 1, [*arguments, *STEPS, "--cache", cache])
        computed = calls(tmp_path / "clip.json")
        frames, _ = run_ranks(2, tuned, [*arguments, *STEPS, "--cache", cache, *others])
        np.testing.assert_allclose(frames, one, atol=5e-4)
        assert calls(tmp_path / "clip.json") == 2 * computed
    plain = launched(0, 1, [*arguments, *STEPS])
    assert computed < calls(tmp_path / "clip.json"), "nothing was skipped"
    assert np.abs(plain - one).max() > 1e-3


# Caches that do not work


@pytest.mark.parametrize(
    ("family", "cache", "works"),
    [
        ("wan-vace", "first-block", ["WanVACEPipeline", "taylorseer"]),
        ("wan-vace", "sea", ["WanVACEPipeline", "taylorseer"]),
        ("wan-v2v", "taylorseer", ["WanVideoToVideoPipeline", "none"]),
        ("wan-2.2-t2v", "pyramid:3", ["WanPipeline", "first-block", "taylorseer", "sea"]),
        ("hunyuan-t2v", "sea:0.1", ["HunyuanVideo15Pipeline", "first-block", "taylorseer"]),
        ("cogvideox-2b", "sea", ["CogVideoXPipeline", "first-block", "taylorseer", "pyramid"]),
    ],
)
def test_a_cache_that_does_not_work_names_those_that_do(family, cache, works, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    model = str(saved(build(), tmp_path / "model"))
    with refuses(LVSAError, "--cache", cache.partition(":")[0], *works):
        make_job(parse([*arguments_for(model, given, inputs, tmp_path), "--cache", cache]), 1, CPU)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("teacache", [*CACHES]),
        ("first-block:-1", ["-1", 0.05]),
        ("first-block:much", ["much", 0.05]),
        ("taylorseer:0", [0, 1, 5]),
        ("taylorseer:2.5", ["2.5", 5]),
        ("sea:inf", ["inf", 0.25]),
        ("pyramid:", [2]),
    ],
)
def test_a_cache_that_cannot_be_read(text, named):
    with refuses(LVSAError, "--cache", text, *named):
        parse_cache(text)


# What is said, kept and traced


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("models") / "wan"))


def flags(model, folder, *more):
    size = ["--num-frames", "45", "--height", "32", "--width", "48", *SPARSE]
    return ["--model", model, "--prompt", "a", "--steps", "3", "--guidance", "3", *size,
            "--output-dir", str(folder), "--output-name", "clip", *more]  # fmt: skip


@pytest.mark.parametrize(
    "more", [["--offload", "model"], ["--offload", "group"], ["--cache", "taylorseer"]]
)
def test_what_changes_nothing_is_said(model, tmp_path, more):
    (note,) = without_effect(make_job(parse(flags(model, tmp_path, *more)), 1, CPU))
    assert note.startswith(" ".join(more))


def test_a_lora_is_in_the_record_with_its_digest(model, tmp_path):
    file = saved_lora(wan_transformer(), tmp_path / "style.safetensors")
    launched(0, 1, flags(model, tmp_path, "--lora", f"{file}:0.5"))
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["config"]["lora"] == [f"{file}:0.5"]
    assert len(record["loras"][str(file)]["sha256"]) == 64


def test_steps_are_traced_on_every_rank(model, tmp_path):
    run_ranks(2, launched, flags(model, tmp_path, "--profile", "2"))
    for number, rank in enumerate(json.loads((tmp_path / "clip.json").read_text())["ranks"]):
        seconds = rank["profile"]["seconds"]
        assert rank["profile"]["steps"] == [1, 2]
        assert set(seconds) == {"attention", "exchange", "rest"} and min(seconds.values()) > 0
        with gzip.open(tmp_path / f"clip.rank{number}.trace.json.gz") as trace:
            events = json.load(trace)["traceEvents"]
        spans = sorted(
            (event["ts"], event["ts"] + event["dur"], event["name"])
            for event in events
            if event.get("cat") == "user_annotation" and event["name"] in seconds
        )
        # One after the other, and together the two steps: 2 layers, 2 passes, 2 steps.
        assert all(end <= start for (_, end, _), (start, _, _) in pairwise(spans))
        assert sum(name == "attention" for *_, name in spans) >= 8


def test_no_more_steps_are_traced_than_there_are(model, tmp_path):
    with refuses(LVSAError, "--profile", 4, 3):
        make_job(parse(flags(model, tmp_path, "--profile", "4")), 1, CPU)


def test_loras_of_flags_take_the_place_of_those_of_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("prompt: a\nlora: [a.safetensors]\n")
    assert parse(["--config", str(file)]).model.lora == ("a.safetensors",)
    two = parse(["--config", str(file), "--lora", "b:2", "--lora", "c"]).model.lora
    assert two == ("b:2", "c")
