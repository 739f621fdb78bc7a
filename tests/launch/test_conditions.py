"""The size of a video follows what it starts from; what is lost is said; one rank reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvsa.adapters import get_adapter
from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.conditions import Conditions
from lvsa.launch.job import make_job
from lvsa.launch.media.encoder import write_video
from lvsa.launch.media.videos import share_cropped
from tests.support import tiny_cogvideox, tiny_hunyuan, tiny_wan_family
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

MODELS = {
    "wan-i2v": tiny_wan_family.wan_i2v,
    "wan-v2v": wan_pipeline,
    "hunyuan-i2v": lambda: tiny_hunyuan.hunyuan_pipeline(image=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: str(saved(build(), folder / name)) for name, build in MODELS.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A portrait photo, the same as telephones store it, and a portrait clip of 30 fps."""
    folder = tmp_path_factory.mktemp("files")
    photo = tiny_wan_family.picture(400, 300)
    photo.save(folder / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    frames = np.random.default_rng(0).random((24, 64, 48, 3), np.float32)
    write_video(folder / "clip.mp4", frames, 30)
    return {path.name: str(path) for path in folder.iterdir()}


def request(model, *more, world=1):
    arguments = ["--model", model, "--prompt", "x", "--steps", "3", *more]
    return make_job(parse(arguments), world, torch.device("cpu")).request


@pytest.mark.parametrize("name", ["photo.png", "turned.jpg"])
def test_a_portrait_photo_makes_a_portrait_video(name, models, files, caplog):
    """In the model's own size, 480 × 832, it would lose 57 % of its height."""
    caplog.set_level("INFO", "lvsa")
    made = request(models["wan-i2v"], "--image", files[name])
    assert (made.height, made.width) == (720, 544)
    assert made.conditions["image"].size == (544, 720)
    said = " ".join(caplog.messages)
    for fact in ("300 × 400", "544 × 720", "832 × 480", "0.7 % of the picture"):
        assert fact in said


def test_the_size_divides_among_the_ranks(models, files):
    """544 × 720 makes 34 × 45 tokens in 21 latent frames, which 8 ranks cannot share."""
    made = request(models["wan-i2v"], "--image", files["photo.png"], world=8)
    assert (made.height // 16) * (made.width // 16) * 21 % 8 == 0
    assert share_cropped((400, 300), (made.height, made.width)) < 0.06
    planned = ["--dry-run", "--ranks", "8", "--output-dir", "unused"]
    assert request(models["wan-i2v"], "--image", files["photo.png"], *planned) == made


@pytest.mark.parametrize(
    ("flags", "size"),
    [(["--height", "480", "--width", "832"], (480, 832)), (["--height", "480"], (480, 832))],
)
def test_a_size_that_is_asked_for_is_made(flags, size, models, files, caplog):
    made = request(models["wan-i2v"], "--image", files["photo.png"], *flags)
    assert (made.height, made.width) == size
    assert "--image: 56.7 % of the picture is cut off" in caplog.text


def test_a_pipeline_that_takes_its_size_from_the_image(models, tmp_path):
    """The tiny HunyuanVideo chooses of 32 × 64, 48 × 48 and 64 × 32, whatever is given."""
    tiny_wan_family.picture(600, 300).save(tmp_path / "tall.png")
    given = ["--image", str(tmp_path / "tall.png"), "--num-frames", "37"]
    made = request(models["hunyuan-i2v"], *given)
    assert (made.height, made.width) == (64, 32)
    assert made.conditions["image"].size == (32, 64)


def test_a_model_that_knows_one_size(files):
    """The first CogVideoX I2V has positions for one size alone."""
    pipe = tiny_cogvideox.cogvideox_pipeline("5b-i2v")
    sources = Conditions({"image": Path(files["photo.png"])})
    assert sources.size((32, 96), get_adapter("cogvideox"), pipe, 97, 1) == (32, 96)


def test_a_video_gives_its_shape_too(models, files, caplog):
    made = request(models["wan-v2v"], "--video", files["clip.mp4"], "--num-frames", "21")
    assert (made.height, made.width) == (720, 544)
    assert [frame.size for frame in made.conditions["video"]] == [(544, 720)] * 21


def test_another_frame_rate_is_said(models, files, caplog):
    size = ["--height", "64", "--width", "48", "--num-frames", "21"]
    request(models["wan-v2v"], "--video", files["clip.mp4"], *size)
    assert "30 frames per second" in caplog.text and "at 16" in caplog.text
    assert "1.88 times slower" in caplog.text
    caplog.clear()
    request(models["wan-v2v"], "--video", files["clip.mp4"], *size, "--fps", "30")
    assert not caplog.text


def test_videos_that_are_too_short(models, files):
    size = ["--height", "64", "--width", "48"]
    with refuses(LVSAError, files["clip.mp4"], 24, 25):
        request(models["wan-v2v"], "--video", files["clip.mp4"], *size, "--num-frames", "25")


def reading(rank, world, arguments):
    """Files that a rank read, and the sum of what its pipeline was given."""
    from lvsa.launch import conditions, inputs, job

    read, given = [], []
    for name in ("read_image", "read_video"):
        original = getattr(conditions, name)

        def counted(path, *args, original=original, **kwargs):
            read.append(path.name)
            return original(path, *args, **kwargs)

        setattr(conditions, name, counted)
    call = inputs.call_arguments
    assert job.call_arguments is call, "the plan's own call is not counted"

    def call_arguments(*args):
        made = call(*args)
        given.append(sum(int(np.asarray(frame).sum()) for frame in made["video"]))
        return made

    inputs.call_arguments = call_arguments
    launched(rank, world, arguments)
    return set(read), given


def test_one_rank_reads_for_all(models, files, tmp_path):
    arguments = [
        "--model", models["wan-v2v"], "--video", files["clip.mp4"], "--num-frames", "21",
        "--prompt", "x",
        "--height", "32", "--width", "48", "--steps", "3", "--strength", "0.7",
        "--output-dir", str(tmp_path),
    ]  # fmt: skip
    (first, given), (second, same) = run_ranks(2, reading, arguments)
    assert first == {"clip.mp4"} and second == set()
    assert given == same and given[0] > 0


def missing(rank, world, arguments):
    from lvsa.launch.processes.reporting import SharedError

    with refuses(SharedError, "none.png"):
        launched(rank, world, arguments)


def test_a_file_that_is_missing_stops_all_ranks(models, tmp_path):
    arguments = ["--model", models["wan-i2v"], "--image", str(tmp_path / "none.png"),
                 "--prompt", "x", "--output-dir", str(tmp_path)]  # fmt: skip
    run_ranks(2, missing, arguments)
