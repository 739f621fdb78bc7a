"""A server of vLLM-Omni as a user starts it, and its clients."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from tests.serving.support.engines import GUIDANCE, MODEL, NEGATIVE, PROMPT, SHIFT, STEPS

START = 240.0
"""Seconds that a server may take until it answers."""
REQUEST = 120.0
"""Seconds that a video may take."""


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Args:
        url: where.
        log: what it prints.
        process: of its own group.
        seconds: that it took to start.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    seconds: float

    def post(self, frames: Any, size: str = "64x64", seed: Any = 0, **more: Any) -> Any:
        """The answer to a request for a video, which is the video itself."""
        import httpx

        fields = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "num_frames": frames,
            "size": size,
            "fps": 16,
            "seed": seed,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "extra_params": json.dumps({"sample_solver": "euler", "flow_shift": SHIFT}),
            **more,
        }
        form = {name: (None, str(value)) for name, value in fields.items()}
        return httpx.post(f"{self.url}/v1/videos/sync", files=form, timeout=REQUEST)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """The address, log and process of a server that was started, and is ended with the block.

    Args:
        folder: where its log goes.
        arguments: of ``vllm-omni serve`` behind the model's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.prefix) / "bin" / "vllm-omni"), "serve", MODEL, "--omni", "--enforce-eager",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", *arguments,
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        yield f"http://127.0.0.1:{port}", log, process
    finally:
        _end(process)


@contextmanager
def server(folder: Path, *arguments: str) -> Iterator[Server]:
    """A server that answers, for the length of the block; arguments as `started`."""
    begin = time.monotonic()
    with started(folder, *arguments) as (url, log, process):
        _wait(url, process, log)
        yield Server(url, log, process, time.monotonic() - begin)


def refusal(folder: Path, *arguments: str) -> str:
    """LVSA's words to a server that does not start; it may take its time to end."""
    with started(folder, *arguments) as (_, log, _):
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            for line in log.read_text(errors="replace").splitlines():
                if "ERROR" in line and "[LVSA]" in line:
                    return line
            time.sleep(0.5)
        raise RuntimeError(f"nothing was said in {START:.0f} s:\n{_tail(log)}")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the server does not answer after {START:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and all that it started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def frames_of(video: bytes, folder: Path) -> np.ndarray:
    """``[frames, height, width, 3]`` uint8 of an mp4."""
    file = folder / "video.mp4"
    file.write_bytes(video)
    reader = imageio_ffmpeg.read_frames(str(file))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader])
