"""Image files as a person sees them: upright, opaque, in sRGB, eight bits a channel."""

import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from lvsa.errors import LVSAError

logger = logging.getLogger(__name__)

# What Pillow's decoders raise for broken files, found by breaking files of every format.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
)
# What white may be where a file does not say: of 8, 16 and 32 bits.
WHITES = (2**8 - 1, 2**16 - 1, 2**31 - 1)
# Formats that Pillow opens as 32-bit integers, or once did, though they hold 16 bits.
SHORT_FORMATS = ("PNG", "PPM", "JPEG2000")
# Tags of TIFF, and values of them.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2


def read_image(path: Path) -> Image.Image:
    """An image file in mode RGB, of its own size.

    It is turned as its EXIF orientation says, brought to sRGB by its profile, and laid over white
    where it is transparent. Of several pictures in a file the first counts.

    Raises:
        LVSAError: for a file that is missing, is no image, is broken or is too large.
    """
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            image.load()
            seen = _as_seen(image, path)
    except Image.DecompressionBombError as error:
        # Its message gives the pixels that there are and how many are allowed.
        raise LVSAError(
            f"{path} is too large: {str(error).split(',')[0]}. Scale it down first; a model takes "
            "about a million"
        ) from error
    except LVSAError:
        raise
    except BROKEN as error:
        raise LVSAError(f"{path} cannot be read as an image: {error}") from error
    if count > 1:
        logger.warning("%s holds %d pictures; the first is taken", path, count)
    return seen


def _as_seen(image: Image.Image, path: Path) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, path)
    alpha = None
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    # A profile fits the colors alone, without transparency and palette.
    if image.mode in ("1", "L", "LA"):
        image = image.convert("L")
    elif image.mode in ("P", "PA", "RGBA"):
        image = image.convert("RGBA").convert("RGB")
    image = _to_srgb(image, path)
    if alpha is not None and alpha.getextrema() != (255, 255):
        share = 1 - float(np.asarray(alpha).mean()) / 255
        logger.warning("%s is %.0f %% transparent; it is laid over white", path, 100 * share)
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """An opaque image in mode RGB, by its embedded profile if it has one that fits."""
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (OSError, ImageCms.PyCMSError) as error:
            logger.warning(
                "%s: its color profile is left out, as it cannot be used: %s", path, error
            )
        else:
            assert converted is not None
            return converted
    return image.convert("RGB")


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """A grey image of more than eight bits or of floats, scaled to mode L, or LA.

    Raises:
        LVSAError: for pixels that are not numbers.
    """
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise LVSAError(f"{path} has {bad} pixels that are not finite numbers")
    white = _white(image, float(values.max()), path)
    levels = (values / white * 255).clip(0, 255).round().astype(np.uint8)
    if _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 255 - levels
    grey = Image.fromarray(levels)
    grey.info = dict(image.info)
    # One grey value may stand for transparent, in the depth of the file.
    key = grey.info.pop("transparency", None)
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _white(image: Image.Image, largest: float, path: Path) -> float:
    """The value of white: what the format says, else the smallest usual one that all fit in."""
    if image.mode != "F":
        tags = _tags(image)
        short = image.mode.startswith("I;16") or image.format in SHORT_FORMATS
        bits = tags.get(BITS_PER_SAMPLE, (16 if short else 32,))[0]
        if bits < 32:
            return float(2 ** (bits - 1 if SIGNED in tags.get(SAMPLE_FORMAT, ()) else bits) - 1)
        kind = "32-bit integer"
        white = float(next((w for w in WHITES if largest <= w), largest))
    else:
        kind = "float"
        # Highlights may go beyond 1, but bytes that became floats go much further.
        white = next((w for w in (1.0, *WHITES) if largest <= (16 if w == 1 else w)), largest)
    logger.warning(
        "%s has %s values up to %.10g, and no word of which is white: %.10g is taken",
        path,
        kind,
        largest,
        white,
    )
    return white


def _tags(image: Image.Image) -> Any:
    """Tags of a TIFF file; nothing for any other."""
    return getattr(image, "tag_v2", {})
