"""The mp4 that a job writes: encoded by ffmpeg, tagged, and read back before it is kept."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lvsa.launch.media.ffmpeg import FFmpegError, count_frames, running
from lvsa.launch.progress import PATIENCE, progress
from lvsa.launch.records.output import OutputError, as_text, signals_raise, written_together

logger = logging.getLogger(__name__)

# Frames are full-range RGB. What is not tagged, players take for BT.601 or BT.709 by its size: so
# one matrix is applied, and named. The flags after it keep every level within one of 255.
TO_BT709 = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709"
    ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
)
TAGS = "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
# x264's constant rate factor: 0 is lossless, 51 the worst.
CRF = 10


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float,
    record: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """An H.264 mp4 in BT.709 and limited range, its index first so that it plays while it loads.

    Args:
        path: of the file.
        frames: ``[F, H, W, 3]`` in 0 … 1.
        fps: frames per second.
        record: makes the record of the finished file, whose name is still another one; it is
            written beside the video, so that both are there or neither.

    Raises:
        OutputError: where ffmpeg fails for whatever reason, where not all frames can be read back,
            or where a pixel is not a number. A file of that name stays as it was.
    """
    records = [] if record is None else [path.with_suffix(".json")]
    with written_together(*records, path) as parts:
        try:
            _encode(parts[-1], frames, fps)
        except FFmpegError as error:
            raise OutputError(f"{path} could not be written: {error}") from error
        if record is not None:
            parts[0].write_text(as_text(record(parts[-1])), encoding="utf-8")


def check_encoder() -> None:
    """Encodes two small frames, so that what is missing is missed before the work, not after it.

    Raises:
        FFmpegError: where ffmpeg or its H.264 encoder is missing or does not work.
    """
    with signals_raise(), tempfile.TemporaryDirectory() as folder:
        try:
            _encode(Path(folder) / "check.mp4", np.zeros((2, 16, 16, 3), np.float32), 8)
        except FFmpegError as error:
            raise FFmpegError(f"no video can be written here: {error}") from error


def _encode(path: Path, frames: np.ndarray, fps: float) -> None:
    height, width = frames.shape[1:3]
    pixels = "yuv420p"
    if height % 2 or width % 2:
        # Half the color resolution, which every player takes, needs even sizes.
        pixels = "yuv444p"
        logger.warning(
            "%d × %d pixels (width × height) is odd: the mp4 keeps full color resolution "
            "(yuv444p), which some players do not show",
            width,
            height,
        )
    arguments = [
        "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}",
        "-framerate", str(fps), "-i", "pipe:0",
        "-vf", f"{TO_BT709},format={pixels},{TAGS}", "-c:v", "libx264", "-crf", str(CRF),
        "-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709",
        "-color_trc", "bt709", "-movflags", "+faststart", "-f", "mp4", "-y", f"file:{path}",
    ]  # fmt: skip
    with running(arguments, writing=True) as ffmpeg:
        # Frame by frame: a long video in float32 is large enough once.
        for number, frame in enumerate(tqdm(frames, "writing", unit="frame", delay=PATIENCE)):
            if not np.isfinite(frame).all():
                raise OutputError(f"frame {number} of the video holds values that are not numbers")
            ffmpeg.pipe.write((frame.clip(0, 1) * 255).round().astype(np.uint8).tobytes())
    with progress("reading the video back"):
        readable = count_frames(path)
    if readable != len(frames):
        raise FFmpegError(
            f"ffmpeg reported success, but of {len(frames)} frames {readable} can be read back"
        )
