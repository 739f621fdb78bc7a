"""Every family through the launcher itself: from a directory to the same frames on any ranks."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.launch.arguments import parse
from lvsa.launch.job import make_job
from tests.support import tiny_cogvideox, tiny_hunyuan, tiny_wan_family
from tests.support.errors import refuses
from tests.support.launched import launched
from tests.support.ranks import run_ranks
from tests.support.tiny import saved, wan_pipeline

CPU = torch.device("cpu")
SPARSE = ["--lvsa", "--rotate-keyframes", "--key-frame-interval", "16", "--window-size", "4"]
WAN = ["--num-frames", "41", "--height", "32", "--width", "96", *SPARSE]
COG = ["--num-frames", "57", "--height", "32", "--width", "96", *SPARSE]
COG_1_5 = ["--num-frames", "81", "--height", "32", "--width", "96", "--lvsa", "--rotate-keyframes",
           "--key-frame-interval", "32", "--window-size", "8"]  # fmt: skip
HUNYUAN = ["--num-frames", "37", "--height", "32", "--width", "48", *SPARSE]
IMAGE, VIDEO = ["--image", "IMAGE"], ["--video", "VIDEO", "--strength", "0.7"]
LAST = ["--last-image", "IMAGE"]

# Pipeline, arguments, then world size and exchange of two runs. Three and four ranks cut frames; in
# the second run ranks share weights.
FAMILIES = {
    "wan-2.1-i2v": (tiny_wan_family.wan_i2v, [*WAN, *IMAGE], (2, "needed"), (3, "ring")),
    "wan-2.1-flf": (
        tiny_wan_family.wan_flf,
        [*WAN, *IMAGE, "--last-image", "IMAGE"],
        (4, "needed"),
        (2, "all_gather"),
    ),
    "wan-2.2-t2v": (
        lambda: wan_pipeline(two_transformers=True), WAN, (3, "all_gather"), (4, "ring"),
    ),
    "wan-2.2-i2v": (tiny_wan_family.wan_22_i2v, [*WAN, *IMAGE], (2, "ring"), (4, "all_gather")),
    "wan-2.2-ti2v": (
        tiny_wan_family.wan_ti2v,
        [*WAN, "--width", "192", *IMAGE],
        (3, "needed"),
        (2, "ring"),
    ),
    "wan-vace": (tiny_wan_family.wan_vace, [*WAN, "--video", "VIDEO"], (2, "needed"), (4, "ring")),
    "wan-v2v": (wan_pipeline, [*WAN, *VIDEO], (3, "needed"), (2, "all_gather")),
    "skyreels-i2v": (tiny_wan_family.skyreels_i2v, [*WAN, *IMAGE], (2, "ring"), (4, "needed")),
    "hunyuan-t2v": (tiny_hunyuan.hunyuan_pipeline, HUNYUAN, (2, "all_gather"), (4, "needed")),
    "hunyuan-i2v": (
        lambda: tiny_hunyuan.hunyuan_pipeline(image=True),
        [*HUNYUAN, *IMAGE],
        (3, "ring"),
        (2, "needed"),
    ),
    "cogvideox-2b": (
        lambda: tiny_cogvideox.cogvideox_pipeline("2b"), COG, (4, "needed"), (2, "ring"),
    ),
    "cogvideox-5b-i2v": (
        lambda: tiny_cogvideox.cogvideox_pipeline("5b-i2v"),
        # Positions were learned at this size and length, and no other is taken.
        [COG[0], "97", *COG[2:], *IMAGE],
        (3, "needed"),
        (2, "all_gather"),
    ),
    "cogvideox-5b-v2v": (
        lambda: tiny_cogvideox.cogvideox_pipeline("5b"), [*COG, *VIDEO], (2, "needed"), (4, "ring"),
    ),
    "cogvideox-1.5": (
        lambda: tiny_cogvideox.cogvideox_pipeline("1.5"), COG_1_5, (2, "ring"), (3, "all_gather"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A picture and a video, in the files that a user would give."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_wan_family.picture(32, 96).save(folder / "image.png")
    frames = np.stack([np.asarray(tiny_wan_family.picture(32, 96, i)) for i in range(60)])
    iio.imwrite(folder / "video.mp4", frames, plugin="FFMPEG", fps=8, macro_block_size=1)
    return {"IMAGE": str(folder / "image.png"), "VIDEO": str(folder / "video.mp4")}


def arguments_for(model, given, inputs, out):
    given = [inputs.get(word, word) for word in given]
    return ["--model", model, "--prompt", "a red circle", "--steps", "3", "--guidance", "3",
            "--fps", "8", "--output-dir", str(out), "--output-name", "clip", *given]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_video_on_any_ranks(family, inputs, tmp_path):
    build, given, *runs = FAMILIES[family]
    arguments = arguments_for(str(saved(build(), tmp_path / "model")), given, inputs, tmp_path)
    alone = launched(0, 1, arguments, True)
    for (world, exchange), more in zip(runs, ([], ["--shard-weights"]), strict=True):
        asked = [*arguments, "--exchange", exchange, *more]
        frames, *latents = run_ranks(world, launched, asked)
        for part in latents:
            np.testing.assert_allclose(part, alone, rtol=1e-5, atol=1e-5)
    record = json.loads((tmp_path / "clip.json").read_text())
    assert record["pattern"]["density"] < 0.9, "this was meant to be sparse"
    assert frames.shape == (record["request"]["num_frames"], *frames.shape[1:3], 3)
    assert all(rank["kv_bytes_received"] for rank in record["ranks"])


@pytest.mark.parametrize(
    ("family", "more", "named"),
    [
        ("wan-2.1-i2v", [], ["--image"]),
        ("hunyuan-t2v", IMAGE, ["--image", "HunyuanVideo15Pipeline"]),
        ("wan-2.2-t2v", VIDEO, ["--video", "WanPipeline"]),
        ("wan-v2v", [*VIDEO[:2], "--strength", "2"], ["--strength", 2.0, 1]),
        ("wan-v2v", [*VIDEO[:2], "--strength", "0.3"], ["--strength", 0.3, 3, "0.333333"]),
        ("cogvideox-2b", ["--riflex"], ["RIFLEx", "transformer"]),
        ("cogvideox-1.5", ["--riflex"], ["riflex_k", "transformer"]),
        ("wan-2.2-t2v", ["--riflex"], ["riflex_k", 2]),
        ("wan-2.2-t2v", ["--riflex", "--riflex-k", "3"], ["riflex_k", 3, 2]),
        ("wan-2.2-t2v", ["--riflex", "--riflex-ratio", "-1"], [-1.0]),
        ("wan-v2v", [*VIDEO, "--num-frames", "61"], [60, 61]),
        ("wan-2.1-i2v", [*IMAGE, *LAST], ["--last-image", "FLF2V", "Wan 2.2 I2V A14B"]),
        ("skyreels-i2v", [*IMAGE, *LAST], ["--last-image", "FLF2V", "Wan 2.2 I2V A14B"]),
        ("wan-2.2-ti2v", [*IMAGE, *LAST], ["--last-image", "FLF2V", "Wan 2.2 I2V A14B"]),
        ("wan-2.1-flf", LAST, ["--image"]),
        ("wan-2.1-flf", IMAGE, ["--last-image"]),
        ("wan-v2v", [*VIDEO, "--num-frames", "0"], [0, 1]),
    ],
)
def test_inputs_that_do_not_fit_the_model(family, more, named, inputs, tmp_path):
    build, given, *_ = FAMILIES[family]
    model = str(saved(build(), tmp_path / "model"))
    size = given[: given.index("--lvsa")]
    with refuses(LVSAError, *named):
        make_job(parse(arguments_for(model, [*size, *more], inputs, tmp_path)), 1, CPU)


def test_images_are_anchors(inputs, tmp_path):
    build, given, *_ = FAMILIES["wan-2.2-i2v"]
    model = str(saved(build(), tmp_path / "model"))
    more = ["--last-image", "IMAGE", "--n-first-frames", "0", "--condition-latent-frames", "5"]
    arguments = arguments_for(model, [*given, *more], inputs, tmp_path)
    job = make_job(parse(arguments), 1, CPU)
    assert job.pattern.fixed_anchors == (0, 5, 10)


def test_a_vae_that_video_to_video_miscounts(inputs):
    """diffusers takes the spatial factor from the levels of the VAE, not from its config."""
    with refuses(LVSAError, 4, 8):
        make_job(parse(["--video", inputs["VIDEO"], "--num-frames", "57"]), 1, CPU)
