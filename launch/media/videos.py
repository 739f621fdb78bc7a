"""Videos as a person sees them, and how pictures fit a video's size. Images: see `images`."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from lvsa.errors import LVSAError
from lvsa.launch.media.ffmpeg import Child, FFmpegError, running

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width, pixels."""
# Part of a picture that may be lost for the sake of a size that the model was trained on.
SMALL_LOSS = 0.05
# Sides of a video taken from an image: models were not trained on longer ones.
LONGEST_SIDES = 4.0
# Frames that a container may announce too many without a sign of damage: its length is rounded,
# and is that of the sound where the sound is longer.
ROUNDING = 0.05
# Words of ffmpeg for matrices that turn YUV into RGB.
MATRICES = ("bt709", "bt470bg", "smpte170m", "bt2020", "smpte240m", "fcc", "ycgco", "gbr")
HDR = ("smpte2084", "arib-std-b67")


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself, before anything is decoded.

    Args:
        fps: frames per second, on average.
        frames: how many it should hold, by its length; None where it does not say.
        matrix: how its colors are coded, in words of ffmpeg's scale filter.
        hdr: name of a transfer function with more than the usual range, if it has one.
    """

    fps: float
    frames: int | None
    matrix: str
    hdr: str | None


@dataclass(frozen=True)
class Video:
    """Frames in memory.

    Args:
        frames: ``[F, H, W, 3]`` bytes, RGB.
        fps: frames per second.
    """

    frames: np.ndarray
    fps: float


def read_video(path: Path, count: int | None = None, size: Size | None = None) -> Video:
    """The first ``count`` frames of a video file, or all of them; no other is decoded.

    Frames are turned as the file says, their pixels made square, and transparent ones laid over
    white.

    Args:
        path: of the file; anything that ffmpeg reads.
        count: frames that are wanted.
        size: height and width that each frame is cropped and scaled to as it is read (see `fit`).

    Raises:
        LVSAError: for a file that is missing or no video, or that has fewer frames than wanted.
    """
    facts = video_facts(path)
    if facts.hdr:
        logger.warning(
            "%s is HDR (%s) and taken as it is: its colors will be dull", path, facts.hdr
        )
    pixels = bytearray()  # It grows in place: a list of frames would be held twice when stacked.
    read, shape, transparent = 0, None, False
    try:
        with running(_decoding(path, facts, count)) as ffmpeg:
            for frame in _pam_frames(ffmpeg.pipe):
                picture = Image.fromarray(frame)
                if frame[..., 3].min() < 255:
                    transparent = True
                    white = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(white, picture)
                picture = picture.convert("RGB")
                picture = picture if size is None else fit(picture, size)
                shape = shape or (picture.height, picture.width, 3)
                if (picture.height, picture.width, 3) != shape:
                    raise LVSAError(f"{path} changes its size at frame {read}, which is not taken")
                pixels += picture.tobytes()
                read += 1
    except FFmpegError as error:
        raise LVSAError(f"{path} cannot be read as a video: {error}") from error
    _check_count(path, read, count, facts.frames, ffmpeg.said)
    if transparent:
        logger.warning("%s is transparent; it is laid over white", path)
    assert shape is not None
    return Video(np.frombuffer(pixels, np.uint8).reshape(read, *shape), facts.fps)


def video_size(path: Path) -> Size:
    """Height and width of a video's frames as they are seen; errors as `read_video`."""
    facts = video_facts(path)
    try:
        with running(_decoding(path, facts, 1)) as ffmpeg:
            frame = next(_pam_frames(ffmpeg.pipe), None)
    except FFmpegError as error:
        raise LVSAError(f"{path} cannot be read as a video: {error}") from error
    _check_count(path, int(frame is not None), 1, facts.frames, ffmpeg.said)
    assert frame is not None
    height, width, _ = frame.shape
    return height, width


def video_facts(path: Path) -> VideoFacts:
    """What a video file says of itself.

    Raises:
        LVSAError: for a file that is missing or no video.
    """
    if not path.is_file():
        raise LVSAError(f"{path} cannot be read as a video: no such file")
    child = Child(["-i", f"file:{path}"], loglevel="info")
    child.finish()  # It fails, as no output was asked for, after it has said what we want.
    told = "\n".join(child.said)
    stream = re.search(r"Stream #.*: Video: (?!.*\(attached pic\))(.*)", told)
    rate = stream and re.search(r"([\d.]+)(k?) (?:fps|tbr)", stream[1])
    if not stream or not rate:
        words = "\n".join(f"  {line}" for line in child.said[-3:])
        raise LVSAError(f"{path} cannot be read as a video:\n{words}")
    fps = float(rate[1]) * (1000 if rate[2] else 1)
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", told)
    seconds = length and int(length[1]) * 3600 + int(length[2]) * 60 + float(length[3])
    shape = re.search(r", (\d+)x(\d+)", stream[1])
    # As players do: what is not tagged is BT.709 where it is high definition.
    high = shape is not None and (int(shape[1]) >= 1280 or int(shape[2]) > 576)
    tagged = any(name in stream[1] for name in MATRICES)
    return VideoFacts(
        fps=fps,
        frames=None if seconds is None else max(1, round(seconds * fps)),
        matrix="bt709" if high and not tagged else "auto",
        hdr=next((name for name in HDR if name in stream[1]), None),
    )


def _decoding(path: Path, facts: VideoFacts, count: int | None) -> list[str]:
    """Arguments of an ffmpeg that writes frames as PAM pictures, which say their own size."""
    scale = (
        f"scale=iw*sar:ih:in_color_matrix={facts.matrix}:out_range=pc"
        ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    )
    return [
        # A playlist may name other files, but nothing in the network.
        "-protocol_whitelist", "file", "-i", f"file:{path}", "-map", "0:V:0", "-vf", scale,
        *([] if count is None else ["-frames:v", str(count)]),
        "-fps_mode", "passthrough", "-pix_fmt", "rgba", "-c:v", "pam", "-f", "image2pipe", "pipe:1",
    ]  # fmt: skip


def _pam_frames(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """Pictures ``[H, W, 4]`` of bytes from a stream of PAM files."""
    while stream.readline():
        header = dict(line.split()[:2] for line in iter(stream.readline, b"ENDHDR\n"))
        height, width = int(header[b"HEIGHT"]), int(header[b"WIDTH"])
        content = stream.read(height * width * 4)
        if len(content) < height * width * 4:
            return  # ffmpeg ended within a picture; its exit code is an error.
        yield np.frombuffer(content, np.uint8).reshape(height, width, 4)


def _check_count(
    path: Path, read: int, wanted: int | None, stated: int | None, complaints: list[str]
) -> None:
    """Holds the frames that were read against those wanted, and those that the file announces."""
    announced = "" if stated is None else f"; by its length it holds {stated}"
    why = f". ffmpeg: {complaints[-1]}" if complaints else ""
    if read == 0:
        raise LVSAError(f"{path} cannot be read as a video: no frame can be read{announced}{why}")
    if wanted is not None and read < wanted:
        raise LVSAError(
            f"{path} has {read} frames that can be read{announced}; {wanted} are wanted: give "
            f"--num-frames {read} or less, or another file{why}"
        )
    missing = 0 if wanted is not None or stated is None else stated - read
    if missing > (0 if complaints else max(1, ROUNDING * (stated or 0))):
        logger.warning("%s seems cut off: %d frames can be read%s%s", path, read, announced, why)


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Fills (height, width): scaled, with what overhangs cut off in equal parts."""
    height, width = size
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def share_cropped(image_size: Size, size: Size) -> float:
    """Part of a picture, 0 … 1, that `fit` cuts off."""
    shapes = sorted(height / width for height, width in (image_size, size))
    return 1 - shapes[0] / shapes[1]


def size_for_image(
    image_size: Size,
    area_size: Size,
    multiples: Size,
    accepts: Callable[[int, int], bool] = lambda height, width: True,
) -> Size:
    """The size of a video in an image's shape, as large as the area allows.

    Args:
        image_size: of the image.
        area_size: the model's own size, which says how large a video may be. It is taken itself,
            or turned, where the image loses at most `SMALL_LOSS` by that.
        multiples: what height and width must be multiples of.
        accepts: whether a height and a width can be used.

    Returns:
        Height and width, one at most `LONGEST_SIDES` times the other, that keep most of the image
        and of the area; ``area_size`` where none is accepted.
    """
    area = area_size[0] * area_size[1]
    for own in (area_size, area_size[::-1]):
        whole = own[0] % multiples[0] == own[1] % multiples[1] == 0
        if share_cropped(image_size, own) <= SMALL_LOSS and whole and accepts(*own):
            return own
    shape = min(max(image_size[0] / image_size[1], 1 / LONGEST_SIDES), LONGEST_SIDES)
    candidates = []
    for height in range(multiples[0], area // multiples[1] + 1, multiples[0]):
        below = int(height / shape / multiples[1]) * multiples[1]
        for width in (below, below + multiples[1]):
            if width > 0 and height * width <= area and accepts(height, width):
                kept = min(height / width / shape, shape * width / height)
                candidates.append((kept * math.sqrt(height * width / area), (height, width)))
    return max(candidates, default=(0.0, area_size))[1]
