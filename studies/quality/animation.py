"""Animated picture of one caption beyond the training horizon, dense beside LVSA.

    python studies/quality/animation.py --output docs/long-video.gif

Both videos start from the same noise. The default is the study's steady drift in which dense
attention loops most; docs/quality.md has the figures of all captions.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import LVSAError
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import written_whole
from lvsa.settings import flag
from lvsa.studies.quality.generation import generate, load
from lvsa.studies.quality.measures import measure

logger = logging.getLogger("lvsa.studies.quality.animation")

LABELS = {"dense": "dense attention", "published, rotating": "LVSA"}
"""Variants of the study that are shown, from left to right, and their labels."""
COLORS = 128
"""Colors of the palette that all frames share."""
MARGIN, HEADER, FOOTER = 8, 24, 34
"""Pixels around the videos, above them and below them."""
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
PAPER, INK, FAINT = "#ffffff", "#333333", "#dddddd"


@dataclass(frozen=True)
class Animation:
    """Show a caption beyond the training horizon, dense beside LVSA."""

    output: Path = Path("docs/long-video.gif")
    """Picture to write; .gif or .webp."""
    model: Path = Path("assets/tiny-wan")
    """Folder of the pipeline."""
    caption: str = "a red circle drifts left"
    """What the videos show."""
    seed: int = 0
    """Seed of the noise, as in the study."""
    latent_frames: int = 121
    """Length; the model was trained on 21."""
    steps: int = TINY_WAN.defaults.steps
    """Denoising steps."""
    speed: int = 4
    """How much faster than the video it plays: one frame in so many is shown."""
    scale: int = 3
    """Pixels of the picture for one of the video, along each side."""

    def check(self) -> None:
        """Checks the settings.

        Raises:
            LVSAError: for one that cannot work.
        """
        if self.output.suffix not in (".gif", ".webp"):
            raise LVSAError(f"--output is {self.output}; it must end in .gif or .webp")
        for name, least in {"latent_frames": 2, "steps": 1, "speed": 1, "scale": 1}.items():
            if getattr(self, name) < least:
                raise LVSAError(
                    f"{flag(name)} is {getattr(self, name)}; it must be at least {least}"
                )


def animate(settings: Animation) -> None:
    """Generates the videos and writes the picture."""
    settings.check()
    pipe = load(settings.model)
    videos = {}
    for variant, label in LABELS.items():
        [video] = generate(
            pipe,
            [settings.caption],
            variant=variant,
            latent_frames=settings.latent_frames,
            seed=settings.seed,
            steps=settings.steps,
        )
        videos[label] = video.permute(0, 2, 3, 1).numpy()
        logger.info("%s: %s", label, measure(videos[label], settings.caption))
    pages = compose(videos, settings.speed, settings.scale)
    save(pages, settings.output, 1 / TINY_WAN.defaults.fps)
    size = settings.output.stat().st_size
    logger.info("wrote %s: %d frames, %.2f MB", settings.output, len(pages), size / 1e6)


def compose(videos: dict[str, np.ndarray], speed: int, scale: int) -> list[Image.Image]:
    """Videos side by side under their labels, above a line that shows how far they have run.

    Args:
        videos: by label, each ``[F, H, W, 3]``, 0 to 1.
        speed: one frame in so many is taken.
        scale: pixels for each pixel of the videos, along each side.
    """
    count, height, width = next(iter(videos.values())).shape[:3]
    across = len(videos) * (width * scale + MARGIN) + MARGIN
    font = ImageFont.load_default(size=13)
    pages = []
    for frame in range(0, count, speed):
        page = Image.new("RGB", (across, HEADER + height * scale + FOOTER), PAPER)
        draw = ImageDraw.Draw(page)
        for i, (label, video) in enumerate(videos.items()):
            left = MARGIN + i * (width * scale + MARGIN)
            draw.text((left + width * scale / 2, HEADER / 2), label, INK, font, anchor="mm")
            pixels = (video[frame] * 255).round().astype(np.uint8)
            picture = Image.fromarray(pixels).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            page.paste(picture, (left, HEADER))
        _draw_timeline(draw, page.size, frame, count, font)
        pages.append(page)
    return pages


def _draw_timeline(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], frame: int, count: int, font: Font
) -> None:
    """Draws a line from the first frame to the last, its part up to the horizon marked."""
    y, left, right = size[1] - FOOTER + 10, MARGIN, size[0] - MARGIN

    def x(frame: int) -> float:
        return left + (right - left) * frame / max(1, count - 1)

    draw.line((left, y, right, y), FAINT, width=3)
    draw.line((left, y, x(frame), y), INK, width=3)
    trained = TINY_WAN.defaults.num_frames
    if trained < count:
        draw.line((x(trained), y - 5, x(trained), y + 5), INK, width=2)
        draw.text((x(trained), y + 6), f"trained on {trained} frames", INK, font, anchor="ma")
    draw.text((right, y + 6), f"frame {frame + 1} of {count}", INK, font, anchor="ra")


def save(pages: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Writes an endless animation, GIF or WebP by its suffix.

    Args:
        pages: of one size.
        path: of the file.
        seconds: that a page is shown; the last one a second longer.
    """
    # One palette, from pages throughout, so that what does not change is the same in every page.
    sample = np.concatenate([np.asarray(page) for page in pages[:: -(-len(pages) // 8)]])
    palette = Image.fromarray(sample).quantize(COLORS)
    first, *rest = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages)
    durations = [round(1000 * seconds)] * len(pages)
    durations[-1] += 1000
    with written_whole(path) as part:
        first.save(part, save_all=True, append_images=rest, duration=durations, loop=0)


def main() -> None:
    """The command line."""
    sys.exit(run_reporting(lambda _: animate(tyro.cli(Animation, description=__doc__))))


if __name__ == "__main__":
    main()
