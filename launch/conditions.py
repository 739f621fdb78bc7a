"""Images and a video that a generation starts from: what size they ask for, and how they fit it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lvsa.adapters.base import ModelAdapter
from lvsa.errors import GridError
from lvsa.launch.media.images import read_image
from lvsa.launch.media.videos import (
    SMALL_LOSS,
    Size,
    fit,
    read_video,
    share_cropped,
    size_for_image,
    video_size,
)
from lvsa.settings import flag

logger = logging.getLogger(__name__)

# Part of a picture that may be cut off without a word: less than a row of pixels of most.
BARELY = 0.002


class Conditions:
    """The files that a generation starts from: images in memory, the video still on the disk.

    Args:
        files: by the pipeline's names, image, last_image and video.

    Raises:
        LVSAError: for a file that is missing, broken, or not what it should be.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.images = {name: read_image(path) for name, path in files.items() if name != "video"}
        self.video = files.get("video")
        self.sizes: dict[str, Size] = {name: (i.height, i.width) for name, i in self.images.items()}
        if self.video is not None:
            self.sizes["video"] = video_size(self.video)

    def size(
        self, own: Size, adapter: ModelAdapter, pipe: Any, num_frames: int | None, world: int
    ) -> Size:
        """Height and width for a video of unasked size, in the shape of what it starts from.

        Args:
            own: the model's own size, which says how large a video may be.
            adapter, pipe: of the model; they say which sizes can be made.
            num_frames: of the video, where that is settled.
            world: ranks among which the video's tokens must divide.
        """
        if not self.sizes:
            return own

        def accepts(height: int, width: int) -> bool:
            try:
                if num_frames is None:
                    tokens = adapter.patches_per_frame(height, width, pipe)
                else:
                    tokens = adapter.grid(num_frames, height, width, pipe).tokens
            except GridError:
                return False
            return tokens % world == 0

        name, given = next(iter(self.sizes.items()))
        size = adapter.size_of_image(pipe, *given) or size_for_image(
            given, own, adapter.size_multiples(pipe), accepts
        )
        logger.info(
            "%s is %d × %d pixels (width × height): the video is made %d × %d, by that shape and "
            "the model's own size, %d × %d; --height and --width choose another",
            flag(name), *given[::-1], *size[::-1], *own[::-1],
        )  # fmt: skip
        return size

    def fitted(self, size: Size, num_frames: int | None, fps: float) -> dict[str, Any]:
        """The pipeline's arguments, images and frames of one size. Says what is lost.

        Args:
            size: height and width of the video.
            num_frames: frames of the given video that are wanted; all of them with None.
            fps: frames per second of the result.

        Raises:
            LVSAError: for a video with fewer frames than are wanted.
        """
        for name, given in self.sizes.items():
            cut = share_cropped(given, size)
            if cut > BARELY:
                logger.log(
                    logging.WARNING if cut > SMALL_LOSS else logging.INFO,
                    "%s: %.1f %% of the picture is cut off, as %d × %d pixels (width × height) "
                    "fill %d × %d",
                    flag(name), 100 * cut, *given[::-1], *size[::-1],
                )  # fmt: skip
        found: dict[str, Any] = {name: fit(image, size) for name, image in self.images.items()}
        if self.video is not None:
            video = read_video(self.video, num_frames, size)
            found["video"] = [Image.fromarray(frame) for frame in video.frames]
            _tell_rates(video.fps, fps)
        return found


def _tell_rates(given: float, made: float) -> None:
    """Says that a video will play at another speed; 29.97 and 30 frames per second are one."""
    if abs(given / made - 1) > 0.01:
        faster = made / given
        logger.warning(
            "--video plays at %g frames per second and the result will at %g, which is %.3g times "
            "%s; --fps %d keeps its speed",
            given, made, max(faster, 1 / faster), "faster" if faster > 1 else "slower",
            max(1, round(given)),
        )  # fmt: skip
