"""Image files come out as a person sees them, whatever their mode, depth, profile or turn."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from lvsa.errors import LVSAError
from lvsa.launch.media.images import read_image
from tests.support.errors import refuses

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
RAMP = np.arange(0, 65536, 257, dtype=np.uint16)[None].repeat(2, 0)  # [2, 256], 0 to 65535
GREY = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)


def read(path, image, **options):
    """Pixels ``[H, W, 3]`` of an image after a way through a file."""
    image.save(path, **options)
    seen = read_image(path)
    assert seen.mode == "RGB"
    return np.asarray(seen).astype(int)


def near(pixels, color, tolerance=1):
    return np.abs(pixels - np.array(color)).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_pictures_are_upright(tmp_path, suffix, orientation):
    upright = Image.new("RGB", (48, 32), RED)
    upright.paste(GREEN, (24, 0, 48, 16))
    upright.paste(BLUE, (0, 16, 24, 32))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read(tmp_path / f"a.{suffix}", stored, exif=exif, quality=95)
    assert got.shape == (32, 48, 3)
    for y, x in ((4, 4), (4, 40), (28, 4), (28, 40)):
        assert near(got[y, x], upright.getpixel((x, y)), 40)


@pytest.mark.parametrize(
    ("mode", "pixel", "color", "suffixes"),
    [
        ("1", 1, (255, 255, 255), "png tif bmp"),
        ("L", 100, (100, 100, 100), "png tif bmp tga"),
        ("LA", (100, 255), (100, 100, 100), "png tif tga"),
        ("LA", (0, 51), (204, 204, 204), "png tif tga"),
        ("RGB", (1, 2, 3), (1, 2, 3), "png tif bmp tga ppm"),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255), "png tif tga"),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204), "png tif webp"),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), "tif jpg"),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0), "tif jpg"),
        ("YCbCr", (150, 44, 21), (0, 255, 1), "tif"),
        ("LAB", (224, 49, 209), (13, 254, 14), "tif"),
    ],
)  # fmt: skip
def test_modes(tmp_path, mode, pixel, color, suffixes):
    for suffix in suffixes.split():
        # Without compression some versions of Pillow do not read their own YCbCr.
        options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {"quality": 100}
        got = read(tmp_path / f"a.{suffix}", Image.new(mode, (16, 16), pixel), **options)
        assert near(got, color), suffix


def test_hidden_colors_stay_hidden(tmp_path, caplog):
    """Pixels that nobody sees hold colors too; without the alpha they show."""
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([*RED, *GREEN])
    for suffix, key in (("png", 1), ("gif", 1), ("png", b"\xff\x00")):
        assert near(read(tmp_path / f"a.{suffix}", palette, transparency=key), 255)
    assert near(read(tmp_path / "b.png", palette, transparency=0), GREEN)
    assert near(read(tmp_path / "c.png", Image.new("RGB", (4, 4), RED), transparency=RED), 255)
    assert near(read(tmp_path / "d.png", Image.new("L", (4, 4), 7), transparency=7), 255)
    caplog.clear()
    half = Image.new("RGBA", (16, 16), (*RED, 0))
    half.paste((*BLUE, 255), (0, 0, 8, 16))
    got = read(tmp_path / "half.png", half)
    assert near(got[:, :8], BLUE) and near(got[:, 8:], 255)
    assert "half.png is 50 % transparent" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_of_grey(tmp_path, suffix, caplog):
    got = read(tmp_path / f"a.{suffix}", Image.fromarray(RAMP))
    assert near(got, GREY[..., None], 0)
    dark = read(tmp_path / f"b.{suffix}", Image.fromarray(RAMP // 256))
    assert dark.max() == 1, "dark is not made bright"
    assert not caplog.text


def test_grey_that_is_unusual(tmp_path):
    got = read(tmp_path / "key.png", Image.fromarray(RAMP), transparency=257 * 7)
    assert near(got[:, 7], 255) and near(got[:, 8:], GREY[:, 8:, None], 0)
    got = read(tmp_path / "inverse.tif", Image.fromarray(RAMP), tiffinfo={262: 0})
    assert near(got, 255 - GREY[..., None], 0)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (RAMP / 65535, 1), (RAMP / 65535 * 1.1, 1), (RAMP / 257.0, 255), (RAMP * 1.0, 65535),
        (RAMP.astype(np.int32), 65535), ((RAMP // 257).astype(np.int32), 255),
        (RAMP.astype(np.int64) * 32767, 2**31 - 1),
    ],
)  # fmt: skip
def test_numbers_without_a_white(tmp_path, values, white, caplog):
    values = values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
    got = read(tmp_path / "a.tif", Image.fromarray(values))
    assert near(got[..., 0], np.minimum(255, values / white * 255))
    assert f"{white:.10g} is taken" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_numbers(tmp_path, bad):
    values = np.zeros((8, 8), np.float32)
    values[:2, 0] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    with refuses(LVSAError, tmp_path / "a.tif", 2):
        read_image(tmp_path / "a.tif")


def swapped_profile():
    """sRGB with red and green primaries exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"swap", 1).replace(b"gXYZ", b"rXYZ", 1)
    return profile.replace(b"swap", b"gXYZ", 1)


def test_profiles(tmp_path, caplog):
    profile = swapped_profile()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("png", "tif", "webp"):
        options = {"icc_profile": profile, "lossless": True}
        assert near(read(tmp_path / f"a.{suffix}", Image.new("RGB", (4, 4), RED), **options), GREEN)
    clear = Image.new("RGBA", (4, 4), (*RED, 51))
    assert near(read(tmp_path / "b.png", clear, icc_profile=profile), (204, 255, 204))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED])
    assert near(read(tmp_path / "c.png", palette, icc_profile=profile), GREEN)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert near(read(tmp_path / "d.png", Image.fromarray(noise), icc_profile=srgb), noise, 0)
    caplog.clear()
    assert near(read(tmp_path / "e.png", Image.new("RGB", (4, 4), RED), icc_profile=b"junk"), RED)
    assert near(read(tmp_path / "f.png", Image.new("L", (4, 4), 9), icc_profile=srgb), 9)
    assert "e.png" in caplog.text and "f.png" in caplog.text


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_pictures_the_first_is_taken(tmp_path, suffix, caplog):
    second = Image.new("RGB", (16, 16), BLUE)
    options = {"save_all": True, "append_images": [second, second.copy()], "lossless": True}
    got = read(tmp_path / f"a.{suffix}", Image.new("RGB", (16, 16), RED), **options)
    assert near(got, RED)
    assert f"a.{suffix} holds" in caplog.text


def test_files_that_are_no_images(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "whole.png"
    )
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name in ("cut", "text", "empty", "folder", "missing"):
        with refuses(LVSAError, tmp_path / f"{name}.png"):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "ppm", "dds", "avif"])
def test_broken_files_give_no_traceback(tmp_path, suffix):
    """Bytes of the header are replaced: either the image is read or the file is named."""
    Image.new("RGB", (16, 16), RED).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(content), 200), 4):
            content[place] = rng.integers(256)
        (tmp_path / f"b.{suffix}").write_bytes(content)
        try:
            read_image(tmp_path / f"b.{suffix}")
        except LVSAError as error:
            assert f"b.{suffix}" in str(error)
            refused += 1
    assert refused


def test_images_that_are_too_large(tmp_path):
    """400 megapixels, in a file of a few kilobytes."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    with refuses(LVSAError, tmp_path / "large.png", 400_000_000, 178_956_970):
        read_image(tmp_path / "large.png")
