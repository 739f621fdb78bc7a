"""Sampling as published or as asked for: schedulers, shifts, two transformers, and what is said."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from lvsa.adapters import adapter_for
from lvsa.adapters.checkpoints import ABSENT, GIVEN, all_checkpoints
from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.config import SamplingConfig
from lvsa.launch.job import make_job
from lvsa.launch.notes import advice, without_effect
from lvsa.launch.sampling import Sampling, scheduler_for, settle, shift_of
from tests.support.errors import names, refuses
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_cogvideox import cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

CPU = torch.device("cpu")
KNOWN = {model.name: model for _, model in all_checkpoints()}
FLOW = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
        "DPMSolverMultistepScheduler")  # fmt: skip


def settled(pipe, size=(480, 832), **given):
    return settle(SamplingConfig(**given), pipe, adapter_for(type(pipe)), size)


def published_pipeline(name):
    """As much of a published checkpoint's pipeline as its sampling depends on."""
    pipe = type(KNOWN[name].pipelines[0], (), {})()
    for component, wanted in KNOWN[name].configs.items():
        entries = {} if wanted is ABSENT else dict(wanted)
        values = {
            entry: {GIVEN: 1, ABSENT: None}.get(value, value) for entry, value in entries.items()
        }
        config = SimpleNamespace(**values)
        setattr(pipe, component, None if wanted is ABSENT else SimpleNamespace(config=config))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipe


# What the authors publish, found in their repositories: shift at 480p and 720p, guidance of both
# transformers, boundary, steps.
PUBLISHED = {
    "Wan 2.1 T2V 1.3B": (8, 8, 6, None, None, 50),
    "Wan 2.1 T2V 14B": (5, 5, 5, None, None, 50),
    "Wan 2.1 I2V 14B 480P": (3, 5, 5, None, None, 40),
    "Wan 2.1 I2V 14B 720P": (3, 5, 5, None, None, 40),
    "Wan 2.1 FLF2V 14B 720P": (16, 16, 5, None, None, 50),
    "Wan 2.1 VACE 1.3B": (16, 16, 5, None, None, 50),
    "Wan 2.1 VACE 14B": (16, 16, 5, None, None, 50),
    "Wan 2.2 VACE-Fun A14B": (12, 12, 5, 5, 0.875, 50),
    "Wan 2.2 T2V A14B": (12, 12, 4, 3, 0.875, 40),
    "Wan 2.2 I2V A14B": (5, 5, 3.5, 3.5, 0.9, 40),
    "Wan 2.2 TI2V 5B": (5, 5, 5, None, None, 50),
    "SkyReels-V2 T2V 14B 540P": (8, 8, 6, None, None, 50),
    "SkyReels-V2 T2V 14B 720P": (8, 8, 6, None, None, 50),
    "SkyReels-V2 I2V 1.3B 540P": (5, 5, 5, None, None, 50),
    "SkyReels-V2 I2V 14B 540P": (5, 5, 5, None, None, 50),
    "SkyReels-V2 I2V 14B 720P": (5, 5, 5, None, None, 50),
    "HunyuanVideo 1.5 480p T2V": (5, 5, 6, None, None, 50),
    "HunyuanVideo 1.5 480p I2V": (5, 5, 6, None, None, 50),
    "HunyuanVideo 1.5 720p T2V": (9, 9, 6, None, None, 50),
    "HunyuanVideo 1.5 720p I2V": (7, 7, 6, None, None, 50),
    "HunyuanVideo 1.5 480p T2V distilled": (5, 5, 1, None, None, 50),
    "HunyuanVideo 1.5 480p I2V distilled": (5, 5, 1, None, None, 50),
    "HunyuanVideo 1.5 720p I2V distilled": (7, 7, 1, None, None, 50),
    "HunyuanVideo 1.5 480p I2V step distilled": (7, 7, 1, None, None, 12),
    "tiny-wan": (None, None, 2.5, None, None, 16),
}


@pytest.mark.parametrize("name", [n for n in KNOWN if not n.startswith("CogVideoX")])
def test_values_of_published_checkpoints(name):
    small, large, guidance, guidance_2, boundary, steps = PUBLISHED[name]
    given = KNOWN[name].defaults
    assert (given.shift(480, 832), given.shift(720, 1280)) == (small, large)
    assert (given.shift(832, 480), given.shift(544, 960)) == (small, small)
    assert (given.guidance, given.guidance_2, given.steps) == (guidance, guidance_2, steps)
    assert given.boundary == boundary and given.dtype == "bfloat16"
    assert (given.source is None) == (name == "tiny-wan")
    # Text-to-video of HunyuanVideo and the bundled model recommend none.
    assert (given.negative_prompt is None) == name.startswith(("Hunyuan", "tiny"))


@pytest.mark.parametrize(
    ("name", "scheduler", "dynamic", "dtype", "multiple"),
    [
        ("CogVideoX-2b", "CogVideoXDDIMScheduler", False, "float16", 8),
        ("CogVideoX-5b", "CogVideoXDPMScheduler", True, "bfloat16", 8),
        ("CogVideoX-5b-I2V", "CogVideoXDPMScheduler", True, "bfloat16", 8),
        ("CogVideoX1.5-5B", "CogVideoXDPMScheduler", True, "bfloat16", 16),
        ("CogVideoX1.5-5B-I2V", "CogVideoXDPMScheduler", True, "bfloat16", 16),
    ],
)
def test_values_of_cogvideox(name, scheduler, dynamic, dtype, multiple):
    given = KNOWN[name].defaults
    assert (given.scheduler, given.dynamic_guidance, given.dtype) == (scheduler, dynamic, dtype)
    assert (given.timestep_spacing, given.frames_multiple) == ("trailing", multiple)
    assert given.guidance == 6 and given.shift(480, 720) is None


# Schedulers


@pytest.mark.parametrize("before", FLOW)
@pytest.mark.parametrize("after", FLOW)
def test_every_scheduler_of_flow_matching_comes_to_the_same_end(before, after):
    """Along a straight flow, whose velocity is noise − video, each of them arrives at the video."""
    current = scheduler_for(Sampling(scheduler=before, flow_shift=3.0), euler(1.0))
    scheduler = scheduler_for(Sampling(scheduler=after, flow_shift=7.0), current)
    assert type(scheduler).__name__ == after and shift_of(scheduler) == 7.0
    torch.manual_seed(0)
    noise, video = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    scheduler.set_timesteps(8)
    # The noise level after half of the way, shifted: 7 · 0.5 / (1 + 6 · 0.5).
    assert scheduler.timesteps[4].item() == pytest.approx(875, abs=40)
    sample = noise
    for step in scheduler.timesteps:
        sample = scheduler.step(noise - video, step, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, video, rtol=1e-3, atol=1e-3)


def euler(shift):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


def test_a_scheduler_that_is_right_is_left_alone():
    current = euler(3.0)
    assert scheduler_for(Sampling(), current) is current
    assert scheduler_for(Sampling(flow_shift=3.0), current) is current
    assert scheduler_for(Sampling(scheduler=type(current).__name__), current) is current
    other = scheduler_for(Sampling(flow_shift=4.0), current)
    assert shift_of(other) == 4.0 and shift_of(current) == 3.0
    assert scheduler_for(Sampling(flow_shift=4.0), other) is other


def test_another_scheduler_keeps_the_shift_and_the_schedule_of_training():
    current = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    other = scheduler_for(Sampling(scheduler="UniPCMultistepScheduler"), current)
    assert (other.config.flow_shift, other.config.num_train_timesteps) == (3.0, 500)
    assert other.config.use_flow_sigmas and other.config.prediction_type == "flow_prediction"


def test_a_shift_by_the_size_of_the_picture_gives_way():
    current = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    other = scheduler_for(Sampling(flow_shift=5.0), current)
    assert not other.config.use_dynamic_shifting and shift_of(other) == 5.0


def test_cogvideox_gets_the_authors_scheduler_with_its_own_noise_schedule():
    pipe = cogvideox_pipeline("5b-i2v")
    own = pipe.scheduler.config
    found = settled(pipe)
    found.set_on(pipe)
    assert type(pipe.scheduler).__name__ == "CogVideoXDPMScheduler"
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    for entry in ("snr_shift_scale", "prediction_type", "rescale_betas_zero_snr"):
        assert pipe.scheduler.config[entry] == own[entry]
    assert found.arguments() == {"use_dynamic_cfg": True}
    # Another scheduler has no dynamic guidance; the checkpoint's own is taken as it is.
    assert settled(pipe, scheduler="CogVideoXDDIMScheduler").arguments() == {}
    own = settled(pipe, scheduler="own")
    assert (own.scheduler, own.timestep_spacing, own.arguments()) == (None, None, {})
    assert settled(cogvideox_pipeline("2b")).scheduler == "CogVideoXDDIMScheduler"


@pytest.mark.parametrize(
    ("build", "name", "fits"),
    [
        (wan_pipeline, "UniPC", "UniPCMultistepScheduler"),
        (wan_pipeline, "CogVideoXDPMScheduler", "FlowMatchEulerDiscreteScheduler"),
        (wan_pipeline, "DDPMScheduler", "own"),
        (hunyuan_pipeline, "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
        (lambda: cogvideox_pipeline("5b"), "UniPCMultistepScheduler", "CogVideoXDDIMScheduler"),
    ],
)
def test_a_scheduler_that_does_not_fit(build, name, fits):
    with refuses(LVSAError, "--scheduler", name, fits):
        settled(build(), scheduler=name)


# What the user says, and what is published


def test_a_checkpoint_that_is_not_known_keeps_its_own():
    pipe = wan_pipeline(two_transformers=True)
    assert settled(pipe) == Sampling()
    scheduler = pipe.scheduler
    settled(pipe).set_on(pipe)
    assert pipe.scheduler is scheduler and pipe.config.boundary_ratio == 0.5


def test_flags_come_before_what_is_published():
    pipe = published_pipeline("Wan 2.2 T2V A14B")
    found = settled(pipe)
    assert (found.flow_shift, found.boundary, found.guidance_2) == (12.0, 0.875, 3.0)
    given = settled(pipe, flow_shift=2.0, boundary=0.3, guidance_2=1.5, guidance=7.0)
    assert (given.flow_shift, given.boundary, given.guidance_2) == (2.0, 0.3, 1.5)
    # As with the authors: one scale of guidance is that of both.
    assert settled(pipe, guidance=7.0).guidance_2 is None
    own = settled(pipe, scheduler="own")
    assert own.flow_shift is None and own.guidance_2 == 3.0
    assert settled(pipe, scheduler="own", flow_shift=4.0).flow_shift == 4.0


def test_the_shift_is_that_of_the_videos_size():
    pipe = published_pipeline("Wan 2.1 I2V 14B 480P")
    assert [settled(pipe, size).flow_shift for size in ((480, 832), (720, 1280))] == [3.0, 5.0]


# What is said, before anything is loaded


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    two = wan_pipeline(two_transformers=True)
    return {
        "one": str(saved(wan_pipeline(), folder / "one")),
        "two": str(saved(two, folder / "two")),
        "cogvideox": str(saved(cogvideox_pipeline("1.5"), folder / "cogvideox")),
    }


def job(model, *more):
    size = ["--num-frames", "33", "--height", "32", "--width", "48", "--guidance", "3"]
    return make_job(parse(["--model", model, "--prompt", "x", *size, *more]), 1, CPU)


@pytest.mark.parametrize(
    ("model", "more", "setting"),
    [
        ("one", ["--guidance-2", "3"], "--guidance-2"),
        ("one", ["--boundary", "0.9"], "--boundary"),
        ("two", ["--guidance", "1", "--guidance-2", "3"], "--guidance-2"),
        ("two", ["--boundary", "0"], "--boundary"),
        ("cogvideox", ["--flow-shift", "3"], "--flow-shift"),
        ("cogvideox", ["--guidance-2", "3"], "--guidance-2"),
    ],
)
def test_settings_without_effect_are_named(models, model, more, setting):
    found = [note.split(":")[0] for note in without_effect(job(models[model], *more))]
    assert found.count(setting) == 1


@pytest.mark.parametrize(
    "more",
    [
        ["--flow-shift", "5", "--guidance-2", "2", "--boundary", "0.7"],
        ["--scheduler", "FlowMatchEulerDiscreteScheduler"],
    ],
)
def test_settings_with_effect_are_not_named(models, more):
    assert without_effect(job(models["two"], *more)) == []


def test_the_plan_is_made_with_the_schedule_that_runs(models):
    found = job(models["two"], "--flow-shift", "5", "--boundary", "0.7", "--steps", "7")
    assert shift_of(found.skeleton.scheduler) == 5.0
    assert found.skeleton.config.boundary_ratio == 0.7
    assert found.request.sampling.guidance_2 is None
    with refuses(LVSAError, "--scheduler", "Euler", "UniPCMultistepScheduler"):
        job(models["one"], "--scheduler", "Euler")


def test_a_negative_prompt_from_a_file(models, tmp_path):
    file = tmp_path / "negative.txt"
    file.write_text("dull\nand gray\n", encoding="utf-8")
    found = job(models["one"], "--negative-prompt-file", str(file))
    assert found.request.negative_prompt == "dull\nand gray"
    with refuses(LVSAError, "--negative-prompt", "--negative-prompt-file"):
        job(models["one"], "--negative-prompt-file", str(file), "--negative-prompt", "x")
    for content in ("  \n", None):
        file.write_text(content) if content else file.unlink()
        with refuses(LVSAError, "--negative-prompt-file", file):
            job(models["one"], "--negative-prompt-file", str(file))


@pytest.mark.parametrize(
    ("frames", "nearest"), [(81, None), (97, None), (89, (81, 97)), (88, (81, 97))]
)
def test_lengths_of_cogvideox_1_5(models, frames, nearest):
    size = ["--num-frames", str(frames), "--height", "32", "--width", "96"]
    said = [text for _, text in advice(job(models["cogvideox"], *size))]
    assert len(said) == (nearest is not None)
    assert not nearest or all(names(said[0], n) for n in (frames, "16k + 1", *nearest))


def test_the_authors_negative_prompt_is_pointed_to():
    """Where one would be used and none is given."""
    known = KNOWN["Wan 2.1 T2V 1.3B"]
    adapter = SimpleNamespace(known_model=lambda pipe: known)
    given = {"num_frames": 81, "conditions": {}, "guidance": 6.0, "negative_prompt": ""}
    for changes, said in (({}, 1), ({"guidance": 1.0}, 0), ({"negative_prompt": "dull"}, 0)):
        request = SimpleNamespace(**{**given, **changes})
        found = advice(SimpleNamespace(adapter=adapter, skeleton=None, request=request))
        assert len(found) == said
        assert all(known.defaults.negative_prompt in text for _, text in found)


@pytest.mark.parametrize(
    ("build", "name", "device", "dtype"),
    [
        ("cogvideox", "auto", "cuda", torch.bfloat16),
        ("cogvideox", "auto", "cpu", torch.float32),
        ("2b", "auto", "cuda", torch.float16),
        ("2b", "bfloat16", "cuda", torch.bfloat16),
    ],
)
def test_the_number_format_is_that_of_training(build, name, device, dtype):
    from lvsa.launch.job import _dtype

    known = KNOWN["CogVideoX-2b" if build == "2b" else "CogVideoX1.5-5B"]
    assert _dtype(name, torch.device(device), known) == dtype
