"""The mp4 that a job writes: encoded by ffmpeg, tagged, and read back before it is kept."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

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


class Encoder:
    """An mp4 that grows frame by frame; `written_video` makes one.

    Args:
        path: of the file.
        fps: frames per second.
        total: frames to come, for who watches; None where nobody knows.
        stack: ends ffmpeg, which the first frame starts, since that has the size.
    """

    def __init__(self, path: Path, fps: float, total: int | None, stack: ExitStack) -> None:
        self.path, self.fps, self.frames = path, fps, 0
        """Frames that were given to ffmpeg, whether it took them or not."""
        self._total, self._stack = total, stack
        self._pipe: IO[bytes] | None = None
        self._bar: Any = None

    def write(self, frame_HW3: np.ndarray) -> None:
        """The next frame ``[H, W, 3]``, of floats in 0 … 1, at once: nothing of it is kept.

        Raises:
            OutputError: for a pixel that is not a number.
        """
        if self._pipe is None:
            height, width, _ = frame_HW3.shape
            arguments = _arguments(self.path, height, width, self.fps)
            self._pipe = self._stack.enter_context(running(arguments, writing=True)).pipe
            bar = tqdm(desc="writing", total=self._total, unit="frame", delay=PATIENCE)
            self._bar = self._stack.enter_context(bar)
        if not np.isfinite(frame_HW3).all():
            raise OutputError(f"frame {self.frames} of the video holds values that are not numbers")
        self.frames += 1
        self._pipe.write((frame_HW3.clip(0, 1) * 255).round().astype(np.uint8).tobytes())
        self._bar.update()


@contextmanager
def written_video(
    path: Path,
    fps: float,
    record: Callable[[Path], dict[str, Any]] | None = None,
    total: int | None = None,
) -> Iterator[Encoder]:
    """An H.264 mp4 in BT.709 and limited range, its index first so that it plays while it loads.

    It takes its frames in the block, and its place when the block has ended.

    Args:
        path: of the file.
        fps: frames per second.
        record: makes the record of the finished file, whose name is still another one; it is
            written beside the video, so that both are there or neither.
        total: frames to come, for who watches; None where nobody knows.

    Raises:
        OutputError: where ffmpeg fails for whatever reason, where not all frames can be read back,
            or where a pixel is not a number. A file of that name stays as it was.
    """
    records = [] if record is None else [path.with_suffix(".json")]
    with written_together(*records, path) as parts:
        try:
            with _encoder(parts[-1], fps, total) as encoder:
                yield encoder
        except FFmpegError as error:
            raise OutputError(f"{path} could not be written: {error}") from error
        if record is not None:
            parts[0].write_text(as_text(record(parts[-1])), encoding="utf-8")


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes a video of frames ``[H, W, 3]`` in 0 … 1 as `written_video` does, without a record."""
    with written_video(path, fps) as video:
        for frame in frames:
            video.write(frame)


def check_encoder() -> None:
    """Encodes two small frames, so that what is missing is missed before the work, not after it.

    Raises:
        FFmpegError: where ffmpeg or its H.264 encoder is missing or does not work.
    """
    with signals_raise(), tempfile.TemporaryDirectory() as folder:
        try:
            with _encoder(Path(folder) / "check.mp4", 8) as encoder:
                for frame in np.zeros((2, 16, 16, 3), np.float32):
                    encoder.write(frame)
        except FFmpegError as error:
            raise FFmpegError(f"no video can be written here: {error}") from error


@contextmanager
def _encoder(path: Path, fps: float, total: int | None = None) -> Iterator[Encoder]:
    """An encoder; when its block ends, all of its frames can be read from the file."""
    with ExitStack() as stack:
        encoder = Encoder(path, fps, total, stack)
        yield encoder
    with progress("reading the video back"):
        readable = count_frames(path)
    if readable != encoder.frames:
        raise FFmpegError(
            f"ffmpeg reported success, but of {encoder.frames} frames {readable} can be read back"
        )


def _arguments(path: Path, height: int, width: int, fps: float) -> list[str]:
    """ffmpeg's command line, without the program."""
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
    return [
        "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}",
        "-framerate", str(fps), "-i", "pipe:0",
        "-vf", f"{TO_BT709},format={pixels},{TAGS}", "-c:v", "libx264", "-crf", str(CRF),
        "-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709",
        "-color_trc", "bt709", "-movflags", "+faststart", "-f", "mp4", "-y", f"file:{path}",
    ]  # fmt: skip
