"""Latents are on the disk before they are decoded; what goes wrong then costs the decoding."""

import json
import os
import signal

import pytest
import torch
from diffusers import AutoencoderKLWan

from lvsa.errors import CheckpointError, LVSAError
from lvsa.launch import finish
from lvsa.launch.arguments import parse
from lvsa.launch.checkpoint import file
from lvsa.launch.checkpoint.values import pack
from lvsa.launch.loading import weights
from lvsa.launch.media import encoder
from lvsa.launch.media.ffmpeg import FFmpegError
from lvsa.launch.processes.reporting import SharedError
from lvsa.launch.records.output import OutputError
from tests.support.errors import refuses
from tests.support.launched import launched, python
from tests.support.ranks import RankFailed, run_ranks
from tests.support.tiny import saved, wan_pipeline
from tests.support.tiny_lora import saved_lora


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(saved(wan_pipeline(), tmp_path_factory.mktemp("model") / "wan"))


def flags(model, folder, *more):
    return [
        "--model", model, "--prompt", "a red circle", "--steps", "2", "--guidance", "3",
        "--num-frames", "17", "--height", "32", "--width", "48", "--output-dir", str(folder),
        "--output-name", "clip", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    launched(0, 1, flags(model, folder))
    return (folder / "clip.mp4").read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kept(folder):
    """Files of the one checkpoint that there is."""
    (path,) = (folder / ".checkpoints").iterdir()
    return names(path)


def no_network(*_, **__):
    raise AssertionError("only the VAE is needed")


def test_latents_first_and_the_video_another_day(model, undisturbed, tmp_path, monkeypatch):
    run_once(flags(model, tmp_path, "--output", "latents"))
    assert names(tmp_path) == ["clip.json", "clip.latents.safetensors"]
    monkeypatch.setattr(weights, "load_pipeline", no_network)
    given = ["--decode", str(tmp_path / "clip.latents.safetensors")]
    done = python([*given, "--output-name", "later"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "later.mp4").read_bytes() == undisturbed
    before, after = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("clip", "later"))
    assert after["config"] == {**before["config"], "output_name": "later"}
    faster = python([*given, "--output-name", "faster", "--fps", "7", "--vae-tiling"])
    assert faster.returncode == 0, faster.stderr
    record = json.loads((tmp_path / "faster.json").read_text())
    assert record["request"]["fps"] == 7 and record["config"]["vae_tiling"]
    assert after["pattern"] == before["pattern"] and after["ranks"] == before["ranks"]
    # A video that is there stays.
    again = python([*given, "--output-name", "later"])
    assert again.returncode == 2 and "later.mp4" in again.stderr and "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr


def test_latents_that_are_there_are_not_made_again(model, tmp_path, caplog):
    latents, record = tmp_path / "clip.latents.safetensors", tmp_path / "clip.json"
    run_once(flags(model, tmp_path, "--output", "latents"))
    made = latents.stat().st_mtime_ns
    caplog.set_level("INFO", "lvsa")
    run_once(flags(model, tmp_path, "--output", "latents"))
    assert latents.stat().st_mtime_ns == made
    assert f"{latents} is there already" in caplog.text
    # Of other settings they are replaced by neither of those who would.
    for more in (["--output", "latents"], ["--keep-latents"]):
        with refuses(SharedError, "clip.latents.safetensors", "seed", "--overwrite"):
            run_once(flags(model, tmp_path, "--seed", "1", *more))
    assert latents.stat().st_mtime_ns == made
    # A video beside them has its own record, which latents leave alone.
    run_once(flags(model, tmp_path))
    latents.unlink()
    before = record.read_bytes()
    run_once(flags(model, tmp_path, "--output", "latents"))
    assert latents.exists() and record.read_bytes() == before
    # Something else of that name is not replaced either.
    latents.write_bytes(b"notes")
    with refuses(SharedError, "clip.latents.safetensors", "no record"):
        run_once(flags(model, tmp_path, "--output", "latents"))


def test_a_video_without_the_latents_that_are_asked_for(model, tmp_path, caplog):
    given = flags(model, tmp_path)
    run_once(given)
    caplog.clear()
    run_once([*given, "--keep-latents"])
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "clip.mp4" in warning.getMessage() and "--overwrite" in warning.getMessage()
    assert names(tmp_path) == ["clip.json", "clip.mp4"]


def test_latents_beside_the_video(model, undisturbed, tmp_path):
    launched(0, 1, flags(model, tmp_path, "--keep-latents"))
    assert names(tmp_path) == ["clip.json", "clip.latents.safetensors", "clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == undisturbed
    config = parse(["--decode", str(tmp_path / "clip.latents.safetensors"), "--fps", "7"])
    assert (config.video.prompt, config.video.fps) == ("a red circle", 7)
    assert not config.checkpoint.keep_latents, "that was the other job's"


def test_what_was_done_to_the_transformer_is_no_matter_for_decoding(model, tmp_path):
    """The LoRA is gone, and the video is made: it is in the latents."""
    lora = saved_lora(wan_pipeline().transformer, tmp_path / "style.safetensors")
    run_once(flags(model, tmp_path, "--output", "latents", "--lora", str(lora)))
    lora.unlink()
    latents = tmp_path / "clip.latents.safetensors"
    assert parse(["--decode", str(latents)]).model.lora == ()
    run_once(["--decode", str(latents), "--device", "cpu"])
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["video"]["sha256"] and record["config"]["lora"] == [str(lora)]


def memory(*_, **__):
    raise torch.OutOfMemoryError("no room")


def encoder_fails(*_, **__):
    raise FFmpegError("killed")


@pytest.mark.parametrize("what", ["memory", "encoder"])
def test_a_failure_after_denoising_costs_the_decoding(what, model, undisturbed, tmp_path):
    patches = {
        "memory": (AutoencoderKLWan, "_decode", memory, torch.OutOfMemoryError),
        "encoder": (encoder.Encoder, "write", encoder_fails, OutputError),
    }
    owner, name, failing, error = patches[what]
    check = encoder.check_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "check_encoder", lambda: None)
        patch.setattr(owner, name, failing)
        with pytest.raises(error):
            launched(0, 1, flags(model, tmp_path))
    assert encoder.check_encoder is check
    assert names(tmp_path) == [".checkpoints"]
    assert kept(tmp_path) == ["job.json", "latents.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "load_pipeline", no_network)
        # What one tries then: so small a video is one tile.
        run_once(flags(model, tmp_path, *(["--vae-tiling"] if what == "memory" else [])))
    assert names(tmp_path) == ["clip.json", "clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == undisturbed
    record = json.loads((tmp_path / "clip.json").read_text())
    assert len(record["ranks"][0]["seconds_per_step"]) == 2
    assert record["config"]["vae_tiling"] == (what == "memory")
    assert record["seconds"].keys() == {
        "loading", "encoding", "denoising", "decoding", "writing"
    }  # fmt: skip


def run_once(arguments):
    """The launcher where it may come to no denoising."""
    from lvsa.launch import generate
    from lvsa.launch.processes.runtime import Runtime
    from lvsa.launch.requests.lists import requests_of

    generate.run(requests_of(parse(arguments)), Runtime(0, 1, torch.device("cpu")))


def killed_while_decoding(rank, world, arguments):
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    AutoencoderKLWan._decode = killed
    launched(rank, world, arguments)


def test_killed_while_decoding(model, undisturbed, tmp_path):
    with pytest.raises(RankFailed):
        run_ranks(2, killed_while_decoding, flags(model, tmp_path))
    assert kept(tmp_path) == ["job.json", "latents.safetensors"]
    run_once(flags(model, tmp_path, "--keep-latents"))
    assert names(tmp_path) == ["clip.json", "clip.latents.safetensors", "clip.mp4"]


def test_killed_between_the_video_and_the_end(model, tmp_path, monkeypatch):
    """What is there is not made again, and its checkpoint goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "tidy_up", no_network)
        with pytest.raises(AssertionError):
            launched(0, 1, flags(model, tmp_path))
    assert names(tmp_path) == [".checkpoints", "clip.json", "clip.mp4"]
    monkeypatch.setattr(weights, "load_pipeline", no_network)
    run_once(flags(model, tmp_path))
    assert names(tmp_path) == ["clip.json", "clip.mp4"]


@pytest.mark.parametrize("content", ["nothing", "a checkpoint", "another safetensors file"])
def test_files_that_hold_no_latents(content, tmp_path):
    path = tmp_path / "x.safetensors"
    if content == "nothing":
        path.write_bytes(b"")
    elif content == "a checkpoint":
        file.write(path, pack(torch.ones(1)), {"steps": 3})
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
    with refuses(CheckpointError, path):
        parse(["--decode", str(path)])


def test_what_decoding_is_refused_with(model, tmp_path):
    run_once(flags(model, tmp_path, "--output", "latents"))
    path = str(tmp_path / "clip.latents.safetensors")
    with refuses(LVSAError, "--config", "--decode"):
        parse(["--decode", path, "--config", str(tmp_path / "clip.json")])
    with refuses(LVSAError, "--decode"):
        parse(["--decode", path, "--decode", path])
    run_ranks(2, refused_on_several, ["--decode", path])


def refused_on_several(rank, world, arguments):
    with refuses(LVSAError, "--decode", 2):
        launched(rank, world, arguments)
