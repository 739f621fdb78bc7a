"""Runs the launcher inside `run_ranks`, or by torchrun as a user does."""

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from tests.support.ranks import forkserver

ROOT = Path(__file__).resolve().parents[2]


def runtime_of(rank: int, world: int) -> Any:
    """The launcher's view of this process: one of several of `run_ranks`, or one alone."""
    from lvsa.launch.processes.runtime import Runtime

    store = dist.distributed_c10d._get_default_store() if world > 1 else None
    return Runtime(rank, world, torch.device("cpu"), store)


def launched(rank: int, world: int, arguments: list[str], latents: bool = False) -> np.ndarray:
    """What the launcher made: frames ``[F, H, W, 3]`` on rank 0, latents on the others.

    It is made anew where it is there already. With ``latents`` nothing is decoded, also not on
    rank 0, and no file is written.
    """
    from lvsa.launch import finish, generate, inputs
    from lvsa.launch.arguments import parse
    from lvsa.launch.media import sharing
    from lvsa.launch.requests.lists import requests_of

    if latents:
        # What is never finished must not leave a checkpoint that the next run goes on from.
        arguments = [*arguments, "--checkpoint-seconds", "100000"]
    made, frames = [], []
    make, decode = generate.make_video, finish.decode
    runtime = runtime_of(rank, world)
    with pytest.MonkeyPatch.context() as patch:
        if latents:
            decoding = inputs.call_arguments
            patch.setattr(
                inputs,
                "call_arguments",
                lambda request, adapter, pipe, first_rank: decoding(request, adapter, pipe, False),
            )
            patch.setattr(finish.Files, "finish", lambda *_: None)
            patch.setattr(sharing, "helpers_in", lambda *_: None)
        patch.setattr(
            finish,
            "decode",
            lambda pipe, latents, write: decode(
                pipe, latents, lambda frame: frames.append(frame) or write(frame)
            ),
        )
        patch.setattr(generate, "make_video", lambda *args: made.append(make(*args)))
        generate.run(requests_of(parse([*arguments, "--overwrite"])), runtime)
    # Nothing is denoised where its latents are there.
    return np.asarray(frames or (made[0][0] if made else []))


def alone(arguments: list[str]) -> list[str]:
    """Names of the videos that the launcher made, in this process."""
    from lvsa.launch import generate
    from lvsa.launch.arguments import parse
    from lvsa.launch.processes.runtime import Runtime
    from lvsa.launch.requests.lists import requests_of

    made, make = [], generate.make_video
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_video", lambda *given: made.append(given[2]) or make(*given))
        generate.run(requests_of(parse(arguments)), Runtime(0, 1, torch.device("cpu")))
    return [video.stem.name for video in made]


def torchrun(world: int, arguments: list[str], script: str | None = None, restarts: int = 0) -> Any:
    """``torchrun`` with the launcher (or another script) in a process of its own."""
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}",
            "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", f"--max-restarts={restarts}",
            script or str(ROOT / "launch" / "generate.py"), *arguments,
        ],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip


def python(arguments: list[str], script: str = "launch/generate.py", **variables: str) -> Any:
    """``python script …`` in a process of its own, which has imported PyTorch before it begins."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with tempfile.TemporaryDirectory() as name:
        said = Path(name)
        process = forkserver().Process(target=_run, args=(script, arguments, environment, said))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [(said / stream).read_text() for stream in ("stdout", "stderr")]
    return subprocess.CompletedProcess([script, *arguments], process.exitcode, *texts)


def _run(script: str, arguments: list[str], environment: dict[str, str], said: Path) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        with (said / stream).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
