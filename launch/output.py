"""Files that are written whole or not at all: the video and its record."""

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import torch

import lvsa
from lvsa.errors import LVSAError
from lvsa.launch.config import GenerateConfig
from lvsa.launch.inputs import Request

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "imageio")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when all went well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """An H.264 mp4.

    Args:
        path: of the file.
        frames: ``[F, H, W, 3]`` in 0 … 1.
        fps: frames per second.
    """
    # Macro blocks of one pixel: otherwise frames are scaled to multiples of 16, unasked.
    form = {"codec": "libx264", "quality": 8, "macro_block_size": 1}
    with (
        written_whole(path) as temporary,
        imageio.get_writer(temporary, format="FFMPEG", fps=fps, **form) as writer,
    ):
        # Frame by frame: a long video in float32 is large enough once.
        for frame in frames:
            writer.append_data((frame.clip(0, 1) * 255).round().astype(np.uint8))


def write_record(path: Path, record: dict[str, Any]) -> None:
    """A JSON file beside the video."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of everything that a result may depend on."""
    found = {"python": platform.python_version(), "lvsa": lvsa.__version__}
    found.update({name: version(name) for name in PACKAGES})
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def output_stem(config: GenerateConfig, request: Request) -> Path:
    """Where the output goes, without suffix.

    Raises:
        LVSAError: for a name that is no file name, or a folder that cannot be written to.
    """
    folder, name = config.output_dir, config.output_name
    if name is None:
        words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:48].strip("-")
        name = f"{words or 'video'}-{request.seed}"
    if not name or Path(name).name != name:
        raise LVSAError(
            f"--output-name is {name!r}; it must be a file name without folders (--output-dir)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LVSAError(f"--output-dir {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise LVSAError(f"--output-dir {folder} cannot be written to")
    return folder / name.removesuffix(".mp4")
