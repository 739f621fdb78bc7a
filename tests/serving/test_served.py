"""LVSA in vLLM-Omni's server, over HTTP, as its users meet it."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serving.support.engines import BELOW, BEYOND, engine, generated
from tests.serving.support.server import frames_of, refusal, server

pytestmark = pytest.mark.vllm_omni
OPTIONS = {"rotate_keyframes": True}
BACKEND = ("--diffusion-attention-backend", "LVSA")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    options = ("--additional-config", json.dumps({"lvsa": OPTIONS}))
    with server(tmp_path_factory.mktemp("server"), *BACKEND, *options) as found:
        yield found


@pytest.fixture(scope="module")
def offline():
    """``[frames, 64, 64, 3]`` in 0 … 1 of an engine in this process, from the same seed."""
    with engine(OPTIONS) as omni:
        video = generated(omni, BEYOND, latents=None, seed=0, output_type="np")
    return np.asarray(video).reshape(-1, 64, 64, 3)


def psnr(frames, expected):
    error = np.mean((frames / 255.0 - expected) ** 2)
    return -10 * np.log10(error)


def test_a_video_is_the_offline_one(running, offline, tmp_path):
    answer = running.post(BEYOND)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4"), answer.text
    frames = frames_of(answer.content, tmp_path)
    assert frames.shape == (BEYOND, 64, 64, 3)
    other = frames_of(running.post(BEYOND, seed=1).content, tmp_path)
    # What a lossy encoder leaves of it, against another noise.
    assert psnr(frames, offline) > 25 > psnr(other, offline) + 5


def test_lengths_and_sizes_in_any_order_by_two_clients_at_once(running, tmp_path):
    wanted = [(BEYOND, "64x64"), (BELOW, "80x48"), (BEYOND, "64x64"), (BELOW, "64x64")]
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda request: running.post(*request), wanted))
    assert [answer.status_code for answer in answers] == [200] * 4
    videos = [frames_of(answer.content, tmp_path) for answer in answers]
    assert [video.shape for video in videos] == [
        (BEYOND, 64, 64, 3), (BELOW, 48, 80, 3), (BEYOND, 64, 64, 3), (BELOW, 64, 64, 3)
    ]  # fmt: skip
    assert np.array_equal(videos[0], videos[2])


@pytest.mark.parametrize(
    "bad", [{"frames": -1}, {"frames": BELOW, "size": "wide"}, {"frames": BELOW, "prompt": ""}]
)
def test_a_bad_request_leaves_the_server_up(running, bad):
    assert running.post(**bad).status_code >= 400
    assert running.post(BELOW).status_code == 200


def test_the_server_says_what_it_runs(running):
    said = [line for line in running.log.read_text().splitlines() if "[LVSA]" in line]
    assert sum("horizon 21 latent frames" in line for line in said) == 1
    assert sum("'cross'" in line for line in said) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ("--additional-config", json.dumps({"lvsa": {"rotate": True}})),
            ("'rotate'", "rotate_keyframes"),
        ),
        (("--ring-degree", "2"), ("ring_degree", "ulysses_degree", "allgather_degree")),
    ],
)
def test_what_is_refused_is_said_at_start(arguments, named, tmp_path):
    said = refusal(tmp_path, *BACKEND, *arguments)
    assert all(word in said for word in named), said
