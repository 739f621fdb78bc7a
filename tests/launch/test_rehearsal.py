"""Generations without weights or values: what they take is what real ones take."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist
from torch import nn

from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from lvsa.launch.loading.weights import load_pipeline
from lvsa.launch.media.rows import distvae_missing
from lvsa.launch.notes import without_effect
from lvsa.launch.rehearsal import estimate as estimating
from lvsa.launch.rehearsal import networks, repeats
from lvsa.launch.rehearsal.call import rehearse, rehearse_decoding
from lvsa.launch.rehearsal.estimate import PHASES, Estimate, Rehearsals
from lvsa.launch.rehearsal.fitting import fits, fitting_lines, settings_that_fit
from lvsa.launch.rehearsal.ledger import Ledger
from lvsa.launch.rehearsal.lines import memory_lines
from lvsa.launch.rehearsal.networks import networks_of
from lvsa.launch.rehearsal.ranks import fake_ranks
from tests.launch.test_families import FAMILIES, SPARSE, arguments_for, inputs  # noqa: F401
from tests.support.measured import counted, measured
from tests.support.missing import missing
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline, wan_transformer

CPU = torch.device("cpu")
SMALL = 10_000
"""Bytes that nobody asks about: states of random numbers, a schedule."""
QUIET = ["--checkpoint-seconds", "100000"]


def planned(arguments, *more, world=1):
    return make_job(parse([*arguments, "--dry-run", *more]), world, CPU)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A model with more blocks than run, and the arguments of a video."""
    pipe = wan_pipeline()
    pipe.transformer = wan_transformer(num_layers=6).eval()
    folder = tmp_path_factory.mktemp("models")
    size = ["--num-frames", "45", "--height", "128", "--width", "192"]
    return ["--model", str(saved(pipe, folder / "wan")), "--prompt", "x", "--steps", "3",
            "--output-dir", str(folder), "--output-name", "clip", *size, *SPARSE]  # fmt: skip


# Held against what real generations take


@pytest.mark.parametrize("family", ["wan-2.1-i2v", "hunyuan-t2v", "cogvideox-5b-v2v"])
def test_a_rehearsal_takes_what_the_generation_takes(family, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    arguments = arguments_for(str(saved(build(), tmp_path / "model")), given, inputs, tmp_path)
    estimate = Estimate(job := planned(arguments), Rehearsals(job))
    for phase, real in measured(0, 1, [*arguments, *QUIET]).items():
        assert estimate.activations(phase) == pytest.approx(real, rel=0.1, abs=SMALL), phase


@pytest.mark.parametrize("exchange", ["needed", "ring"])
def test_a_rank_of_several_takes_what_its_rehearsal_takes(wan, exchange):
    more = ["--exchange", exchange, "--parallel", "manual", "--vae-parallel", "off"]
    _, real = run_ranks(2, counted, [*wan, *more, *QUIET])
    job = planned(wan, *more, "--ranks", "2")
    taken = rehearse(job, networks_of(job)).denoising
    assert taken == pytest.approx(real, rel=0.1)
    alone = planned(wan)
    assert taken < 0.9 * rehearse(alone, networks_of(alone)).denoising


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("family", ["wan-2.1-i2v", "hunyuan-i2v", "cogvideox-2b"])
def test_weights_are_as_large_as_those_that_are_loaded(family, dtype, inputs, tmp_path):  # noqa: F811
    build, given, *_ = FAMILIES[family]
    arguments = arguments_for(str(saved(build(), tmp_path / "model")), given, inputs, tmp_path)
    job = planned(arguments, "--dtype", dtype)
    pipe = load_pipeline(job.source, job.dtype, job.adapter)
    real = {n: part for n, part in pipe.components.items() if isinstance(part, nn.Module)}
    found = networks_of(job)
    assert found.keys() == real.keys()
    for name, network in found.items():
        assert network.bytes == pytest.approx(networks.size_of(real[name]), rel=0.01), name


# What is left out of a rehearsal changes nothing


def test_a_few_blocks_take_what_all_take(wan, monkeypatch):
    job = planned(wan)
    few = rehearse(job, networks_of(job))
    monkeypatch.setattr(networks, "LAYERS_RUN", 6)
    assert few == rehearse(job, networks_of(job))


@pytest.mark.parametrize("more", [[], ["--vae-tiling"]])
def test_a_few_frames_take_what_all_take(wan, monkeypatch, more):
    job = planned(wan, *more)
    found = networks_of(job)
    latents = rehearse(job, found).latents
    few = rehearse_decoding(job, found, latents)
    monkeypatch.setattr(repeats, "RUN", 1000)
    assert few == rehearse_decoding(job, found, latents)


# The parts of it


def test_a_ledger_counts_storages_while_they_stand():
    weight = torch.zeros(1000, 1000)
    with Ledger() as ledger:
        x = weight.t() @ weight
        assert ledger.bytes == ledger.peak == 4_000_000
        y = x[:10] + 1
        del x
        assert ledger.bytes == 40_000
        assert ledger.restart() == 4_040_000 and ledger.peak == 40_000
        ledger.passing(5)
    assert y.shape == (10, 1000) and ledger.peak == 40_005


def beside_real_ranks(rank, world):
    with fake_ranks(5, 8):
        inside = dist.get_rank(), dist.get_world_size()
    total = torch.ones(1)
    dist.all_reduce(total)
    return inside, total.item()


def test_ranks_that_are_not_there_leave_those_that_are():
    assert run_ranks(2, beside_real_ranks) == 2 * [((5, 8), 2.0)]


# What is said


@pytest.fixture(scope="module")
def asked(wan):
    job = planned(wan, "--ranks", "3")
    return Estimate(job, Rehearsals(job))


@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_weights_on_the_device(asked, offload):
    tuning = replace(asked.job.config.tuning, offload=offload)
    job = replace(asked.job, config=replace(asked.job.config, tuning=tuning))
    estimate = Estimate(job, asked.rehearsals)
    found = {name: network.bytes for name, network in networks_of(job).items()}
    weights = {phase: estimate.weights(phase) for phase in PHASES}
    assert estimate.weights("denoising", first=False) <= weights["denoising"]
    if offload == "none":
        assert weights["encoding"] == sum(found.values())
        assert weights["denoising"] == weights["encoding"] - found["text_encoder"]
        assert weights["decoding"] == found["vae"], "what is done leaves"
    if offload == "model":
        assert weights["denoising"] == found["transformer"] and weights["decoding"] == found["vae"]
    if offload == "group":
        assert 0 < weights["denoising"] < found["transformer"]


def test_ranks_that_decode_together_have_room_for_it(wan):
    if reason := distvae_missing():
        missing(reason)
    alone, together = (
        Estimate(planned(wan, "--ranks", "3", "--vae-parallel", asked), Rehearsals(planned(wan)))
        for asked in ("off", "on")
    )
    first = together.need("decoding")
    assert together.need("decoding", first=False) == first == alone.need("decoding")
    assert alone.activations("decoding", first=False) == 0
    assert alone.weights("decoding", first=False) > first.weights
    assert sum("upper bound" in line for line in memory_lines(together.job)) == 1
    assert not any("upper bound" in line for line in memory_lines(alone.job))


def test_weights_that_ranks_share(asked, wan):
    """Less in every phase; in a list parts stay till the last video."""

    def weights(*more, listed=False):
        job = planned(wan, "--ranks", "3", *more)
        estimate = Estimate(job, asked.rehearsals, listed)
        return {phase: estimate.weights(phase) for phase in PHASES}

    whole, parts = weights(), weights("--shard-weights")
    listed = weights("--shard-weights", listed=True)
    assert all(parts[phase] < whole[phase] for phase in ("loading", "encoding", "denoising"))
    assert parts["decoding"] == whole["decoding"] < listed["decoding"]
    assert listed["denoising"] > parts["denoising"] and listed["encoding"] == parts["encoding"]
    encoder = asked.rehearsals.networks["text_encoder"]
    assert encoder.gathered > 2 * encoder._outside, "twice until the first block has come"


def test_settings_that_fit(asked, monkeypatch):
    monkeypatch.setattr(estimating, "MARGIN_BYTES", 0)
    whole = asked.most()[1].with_margin
    assert fits(asked, whole / 1e9) and len(fitting_lines(asked, whole / 1e9)) == 1
    gigabytes = (whole - 1) / 1e9
    assert not fits(asked, gigabytes)
    found = dict(settings_that_fit(asked, gigabytes))
    assert found and all(fits(other, gigabytes) for other in found.values())
    # More ranks share the denoising, and it is the encoding that takes most.
    assert asked.most()[0] == "encoding"
    assert [*found][:2] == ["--shard-weights", "--offload model"]
    assert not any("ranks" in flags for flags in found)
    assert not dict(settings_that_fit(asked, 1e-6))


def test_the_lines_have_every_phase(asked):
    lines = memory_lines(asked.job)
    assert [line.split()[0] for line in lines[1:5]] == list(PHASES)
    assert all(line.count("|") == 1 for line in lines[1:5])


def test_tokens_that_do_not_divide_are_not_rehearsed(wan):
    assert len(memory_lines(planned(wan, "--ranks", "7"))) == 1


def test_a_model_without_encoders_is_planned(wan, tmp_path):
    shutil.copytree(wan[1], tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder"))
    (line,) = memory_lines(planned(["--model", str(tmp_path / "bare"), *wan[2:]]))
    assert "text_encoder" in line


def test_memory_of_a_gpu_is_asked_about_in_a_dry_run(wan):
    config = parse([*wan, "--gpu-memory", "24"])
    notes = [n for n in without_effect(make_job(config, 1, CPU)) if "--gpu-memory" in n]
    assert len(notes) == 1
    job = planned(wan, "--gpu-memory", "24")
    assert job.dtype == torch.bfloat16, "a GPU's"
    assert not [n for n in without_effect(job) if "--gpu-memory" in n]
    assert "24" in memory_lines(job)[-1]
