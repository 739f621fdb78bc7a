"""Whole generations with the flags of sampling: on ranks as in one process, and in the record."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline

from lvsa.adapters import adapter_for
from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.loading.models import find_model
from lvsa.launch.loading.weights import load_pipeline
from lvsa.launch.requests.existing import Existing
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_cogvideox import cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline
from tests.support.tiny_wan_family import common, vace_transformer

SIZE = ["--num-frames", "33", "--height", "32", "--width", "96"]
EXPERTS = ["--flow-shift", "5", "--guidance-2", "1.5", "--boundary", "0.8"]


def vace_of_two():
    """Of the kind of VACE-Fun."""
    parts = {"transformer": vace_transformer(), "transformer_2": vace_transformer()}
    return WanVACEPipeline(**common(), **parts, boundary_ratio=0.5)


# Pipeline, flags, then the scheduler's class and an entry of its config as the record has them.
CASES = {
    "wan-two": (
        lambda: wan_pipeline(two_transformers=True),
        EXPERTS,
        ("UniPCMultistepScheduler", "flow_shift", 5.0),
    ),
    "vace-two": (vace_of_two, EXPERTS, ("UniPCMultistepScheduler", "flow_shift", 5.0)),
    "wan-dpm": (
        wan_pipeline,
        ["--scheduler", "DPMSolverMultistepScheduler"],
        ("DPMSolverMultistepScheduler", "flow_shift", 3.0),
    ),
    "wan-euler": (
        wan_pipeline,
        ["--scheduler", "FlowMatchEulerDiscreteScheduler", "--flow-shift", "2"],
        ("FlowMatchEulerDiscreteScheduler", "shift", 2.0),
    ),
    "hunyuan": (
        hunyuan_pipeline,
        ["--scheduler", "UniPCMultistepScheduler"],
        ("UniPCMultistepScheduler", "flow_shift", 5.0),
    ),
    # As published: DPM, which draws noise, and dynamic guidance.
    "cogvideox": (
        lambda: cogvideox_pipeline("5b"),
        [],
        ("CogVideoXDPMScheduler", "timestep_spacing", "trailing"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_on_two_ranks_and_in_the_record(case, tmp_path):
    build, flags, (scheduler, entry, value) = CASES[case]
    plain = ["--model", str(saved(build(), tmp_path / "model")), "--prompt", "a red circle",
             "--steps", "4", "--guidance", "3", "--fps", "8", "--output-dir", str(tmp_path),
             *SIZE]  # fmt: skip
    alone = launched(0, 1, [*plain, *flags, "--output-name", "one"], True)
    _, second = run_ranks(2, launched, [*plain, *flags, "--output-name", "two"])
    np.testing.assert_allclose(second, alone, rtol=1e-5, atol=1e-5)
    record = json.loads((tmp_path / "two.json").read_text())
    assert record["scheduler"]["class"] == scheduler
    assert record["scheduler"]["config"][entry] == value
    other = ["--scheduler", "own"] if case == "cogvideox" else []
    changed = launched(0, 1, [*plain, *other, "--output-name", "other"], True)
    assert np.abs(changed - alone).max() > 1e-3
    if case.endswith("two"):
        assert record["request"]["boundary"] == 0.8 and record["request"]["guidance_2"] == 1.5


def test_the_record_holds_the_negative_prompt_of_a_file(tmp_path):
    """So that it makes the video again without the file, and the video counts as made."""
    file = tmp_path / "negative.txt"
    file.write_text("dull\n")
    model = str(saved(wan_pipeline(), tmp_path / "model"))
    flags = ["--model", model, "--prompt", "x", "--steps", "1", "--guidance", "3", "--fps", "8",
             "--negative-prompt-file", str(file), "--output-dir", str(tmp_path),
             "--output-name", "clip", "--num-frames", "5", *SIZE[2:]]  # fmt: skip
    launched(0, 1, flags)
    config = json.loads((tmp_path / "clip.json").read_text())["config"]
    assert (config["negative_prompt"], config["negative_prompt_file"]) == ("dull", None)
    job = make_job(parse(flags), 1, torch.device("cpu"))
    assert Existing().holds(job, tmp_path / "clip")
    file.write_text("gray\n")
    with refuses(LVSAError, "negative_prompt", "dull", "gray"):
        Existing().holds(make_job(parse(flags), 1, torch.device("cpu")), tmp_path / "clip")


def test_components_keep_the_number_format_of_their_authors(tmp_path):
    folder = saved(hunyuan_pipeline(), tmp_path / "model")
    source, adapter = find_model(str(folder)), adapter_for("HunyuanVideo15Pipeline")
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        pipe = load_pipeline(source, dtype, adapter)
        parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
        found[dtype] = [getattr(pipe, name).dtype for name in parts]
    half = torch.float16
    assert found == {
        torch.bfloat16: [torch.bfloat16, half, half, half],
        torch.float32: [torch.float32] * 4,
    }
