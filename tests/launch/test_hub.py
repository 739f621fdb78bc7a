"""Models and LoRAs by their ids on a model hub: huggingface_hub's own client, a hub of our own."""

import json
import os
import subprocess
import sys

import pytest

from lvsa.adapters.checkpoints.loras import DISTILLED_LORAS
from tests.support.hub import commit_of, hub
from tests.support.launched import ROOT
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_lora import saved_lora

MODEL, LORA, SEVERAL = "lab/wan-tiny", DISTILLED_LORAS[0].repository, "lab/styles"
SIZE = ["--num-frames", "17", "--height", "32", "--width", "48"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A model with weights that no pipeline reads beside it; LoRAs, one alone and two together."""
    root = tmp_path_factory.mktemp("repositories")
    pipe = wan_pipeline()
    model = saved(pipe, root / "model")
    (model / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"unread")
    (model / "README.md").write_text("A model.")
    for name in ("lora/four-steps", "styles/ink", "styles/clay"):
        saved_lora(wan_pipeline().transformer, root / f"{name}.safetensors")
    return {MODEL: model, LORA: root / "lora", SEVERAL: root / "styles"}


@pytest.fixture
def launch(tmp_path):
    """The launcher as a user starts it, with an empty cache of the hub's files."""

    def start(address, *arguments, **variables):
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT), **variables,
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "launch/generate.py", "--prompt", "a red circle", "--device", "cpu",
             "--output-dir", str(tmp_path / "videos"), "--output-name", "clip", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    return start


def test_a_video_of_a_model_and_a_lora_of_the_hub(repositories, launch, tmp_path):
    given = ["--model", MODEL, "--lora", LORA, *SIZE]
    with hub(repositories) as (address, asked):
        planned = launch(address, *given, "--dry-run")
        assert planned.returncode == 0, planned.stderr
        # A plan needs configs and the LoRA, and none of the model's weights.
        assert [path for path in asked if path.endswith(".safetensors")] == [
            "four-steps.safetensors"
        ]
        made = launch(address, *given)
        assert made.returncode == 0, made.stderr
        assert "transformer/diffusion_pytorch_model.safetensors" in asked
        assert not [path for path in asked if "fp16" in path or path == "README.md"]
        assert len(asked) == len({*asked}), "each file is fetched once"
    record = json.loads((tmp_path / "videos" / "clip.json").read_text())
    assert record["weights"]["revision"] == commit_of(repositories[MODEL])
    # As the LoRA's authors sample it: nobody has said otherwise.
    assert (record["request"]["steps"], record["request"]["guidance"]) == (4, 1)
    assert record["request"]["flow_shift"] == 5 and LORA in made.stderr
    # What was fetched serves without a network, and a video that is there is known again.
    again = launch(address, *given, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "is there already" in again.stderr, again.stderr


def test_flags_come_before_what_a_lora_is_sampled_with(repositories, launch, tmp_path):
    given = ["--model", MODEL, "--lora", LORA, *SIZE, "--steps", "2", "--scheduler", "own"]
    with hub(repositories) as (address, _):
        made = launch(address, *given)
    assert made.returncode == 0, made.stderr
    record = json.loads((tmp_path / "videos" / "clip.json").read_text())
    assert (record["request"]["steps"], record["request"]["guidance"]) == (2, 1)
    assert record["request"]["flow_shift"] != 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "lab/nothing"], ["lab/nothing"]),
        (["--model", MODEL, "--revision", "v2"], [MODEL, "v2"]),
        (["--model", LORA], [LORA, "model_index.json"]),
        (["--model", MODEL, "--lora", SEVERAL], [SEVERAL, "clay.safetensors", "ink.safetensors"]),
        (["--model", MODEL, "--lora", f"{SEVERAL}/oil.safetensors"], ["oil.safetensors"]),
        (["--model", MODEL, "--lora", "lab/nothing"], ["lab/nothing"]),
    ],
)
def test_what_the_hub_does_not_have(arguments, said, repositories, launch):
    with hub(repositories) as (address, _):
        ended = launch(address, *arguments, *SIZE)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert all(word in ended.stderr for word in said), last


def test_a_hub_that_is_not_there(launch):
    with hub({}) as (address, _):
        pass
    ended = launch(address, "--model", MODEL, *SIZE)
    assert ended.returncode == 2 and MODEL in ended.stderr and "reached" in ended.stderr
    assert "Traceback" not in ended.stderr
