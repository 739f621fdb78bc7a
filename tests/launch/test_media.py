"""Videos come out as a person sees them, as far as they are wanted; sizes follow pictures."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from lvsa.errors import LVSAError
from lvsa.launch.media.encoder import write_video
from lvsa.launch.media.ffmpeg import executable
from lvsa.launch.media.videos import fit, read_video, share_cropped, size_for_image, video_facts
from tests.support.errors import refuses


def made(path, *arguments):
    """A file that ffmpeg makes."""
    subprocess.run([executable(), "-v", "error", "-y", *map(str, arguments), str(path)], check=True)
    return path


def colors(count, height=32, width=48):
    """Frames ``[F, H, W, 3]`` of one grey each, 0 … 1, which tell their number."""
    levels = np.arange(count) / max(1, count - 1)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", colors(20), 30)
    return tmp_path / "clip.mp4"


def test_all_frames_and_their_rate(clip):
    video = read_video(clip)
    assert video.frames.shape == (20, 32, 48, 3) and video.frames.dtype == np.uint8
    assert video.fps == 30
    assert np.abs(video.frames - colors(20) * 255).max() <= 2


def test_what_is_written_is_what_is_read(tmp_path):
    frames = np.zeros((3, 720, 1280, 3))
    frames[..., 1] = 1
    write_video(tmp_path / "green.mp4", frames, 8)
    assert np.abs(read_video(tmp_path / "green.mp4").frames - frames * 255).max() <= 2


def test_the_frames_that_are_wanted(clip):
    video = read_video(clip, count=7, size=(16, 16))
    assert video.frames.shape == (7, 16, 16, 3)
    assert np.abs(video.frames - colors(20, 16, 16)[:7] * 255).max() <= 2
    with refuses(LVSAError, clip, 20, 21):
        read_video(clip, count=21)


def test_no_more_than_is_wanted_is_read(tmp_path):
    """A file that breaks behind the wanted frames is as good as a whole one."""
    noise = np.random.default_rng(0).random((40, 64, 64, 3), np.float32)
    write_video(tmp_path / "a.mp4", noise, 8)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    first = read_video(tmp_path / "a.mp4", count=5).frames
    assert np.array_equal(read_video(tmp_path / "cut.mp4", count=5).frames, first)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_clip_that_was_cut_off_in_transfer(tmp_path, suffix, caplog):
    source = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=16", "-frames:v", 20]
    whole = made(tmp_path / f"whole.{suffix}", *source, "-movflags", "+faststart")
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: len(content) * 55 // 100])
    assert len(read_video(whole).frames) == 20 and not caplog.text
    readable = len(read_video(cut).frames)
    assert 4 < readable < 16
    assert f"{readable} frames can be read; by its length it holds 20" in caplog.text
    with refuses(LVSAError, cut, readable, 20, 17):
        read_video(cut, count=17)
    caplog.clear()
    assert len(read_video(cut, count=readable - 1).frames) == readable - 1 and not caplog.text


def test_longer_sound_is_no_sign_of_damage(tmp_path, caplog):
    sound = ["-f", "lavfi", "-i", "sine=duration=2.1"]
    picture = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=30", "-frames:v", 61]
    path = made(tmp_path / "a.mp4", *sound, *picture)
    assert len(read_video(path).frames) == 61 and not caplog.text


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_videos_of_telephones_are_upright(clip, tmp_path, turn):
    frames = np.zeros((2, 32, 48, 3))
    frames[:, :16, :24, 0] = 1  # Red is above on the left.
    write_video(tmp_path / "flat.mp4", frames, 8)
    stored = made(
        tmp_path / "turned.mp4",
        *("-display_rotation", turn, "-i", tmp_path / "flat.mp4", "-c", "copy"),
    )
    seen = np.rot90(frames[0], turn // 90)
    got = read_video(stored).frames[0]
    assert got.shape == seen.shape
    for y in (4, -4):
        for x in (4, -4):
            assert np.abs(got[y, x] - seen[y, x] * 255).max() <= 12


def test_pixels_that_are_not_square(tmp_path, clip):
    wide = made(tmp_path / "wide.mkv", "-i", clip, "-vf", "setsar=2")
    assert read_video(wide, count=1).frames.shape == (1, 32, 96, 3)


def test_colors_without_a_tag(tmp_path):
    """As players do: BT.601 for small pictures, BT.709 for large ones."""
    for height, width in ((64, 64), (720, 1280)):
        matrix = "bt709" if height == 720 else "bt601"
        path = made(
            tmp_path / f"{height}.mp4",
            *("-f", "lavfi", "-i", f"color=0x00ff00:size={width}x{height}:rate=8", "-frames:v", 1),
            *("-vf", f"format=rgb24,scale=out_color_matrix={matrix},format=yuv420p"),
            *("-bsf:v", "h264_metadata=matrix_coefficients=2"),
        )
        assert video_facts(path).matrix == ("bt709" if height == 720 else "auto")
        assert np.abs(read_video(path).frames.astype(int) - (0, 255, 0)).max() <= 3


def test_transparent_and_bright_videos_are_said(tmp_path, clip, caplog):
    clear = Image.new("P", (16, 16), 0)
    clear.putpalette([255, 0, 0, 0, 0, 255])
    other = Image.new("P", (16, 16), 1)
    other.putpalette([255, 0, 0, 0, 0, 255])
    clear.save(
        tmp_path / "a.gif", save_all=True, append_images=[other], transparency=0, duration=100
    )
    frames = read_video(tmp_path / "a.gif").frames
    assert (frames[0] == 255).all() and np.abs(frames[1] - (0, 0, 255)).max() <= 1
    assert "a.gif is transparent" in caplog.text
    hdr = made(tmp_path / "hdr.mp4", "-i", clip, "-vf", "setparams=color_trc=arib-std-b67")
    read_video(hdr, count=1)
    assert "hdr.mp4 is HDR (arib-std-b67)" in caplog.text


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    made(tmp_path / "sound.mp4", "-f", "lavfi", "-i", "sine=duration=1")
    for name in ("text", "empty", "folder", "sound", "missing"):
        with refuses(LVSAError, tmp_path / f"{name}.mp4"):
            read_video(tmp_path / f"{name}.mp4")


def test_names_that_mean_something_to_ffmpeg(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "http:clip.mp4", "a%d.mp4", "a b'c.mp4"):
        write_video(tmp_path / name, colors(2), 8)
        assert read_video(tmp_path / name, count=2).fps == 8


def test_a_playlist_does_not_reach_into_the_network(tmp_path):
    (tmp_path / "a.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with refuses(LVSAError, tmp_path / "a.m3u8"):
        read_video(tmp_path / "a.m3u8")


def test_fitting_cuts_off_equal_parts():
    picture = Image.new("RGB", (96, 32), "black")
    picture.paste("white", (32, 0, 64, 32))
    assert (np.asarray(fit(picture, (32, 32))) == 255).all()
    assert fit(picture, (32, 96)) is picture
    assert share_cropped((32, 96), (32, 32)) == pytest.approx(2 / 3)
    assert share_cropped((10, 20), (50, 100)) == 0
    # A portrait photo in the landscape size of a model.
    assert share_cropped((4032, 3024), (480, 832)) == pytest.approx(0.567, abs=1e-3)


@pytest.mark.parametrize("area", [(480, 832), (720, 1280), (544, 960), (64, 64)])
@pytest.mark.parametrize(
    "image", [(4032, 3024), (3024, 4032), (1920, 1080), (1080, 1920), (1000, 1000), (500, 1500)]
)
@pytest.mark.parametrize("multiples", [(16, 16), (32, 32), (16, 8)])
def test_the_size_follows_the_image(image, area, multiples):
    height, width = size_for_image(image, area, multiples)
    assert height % multiples[0] == width % multiples[1] == 0
    assert height * width <= area[0] * area[1]
    if area != (64, 64):
        assert height * width >= 0.8 * area[0] * area[1]
        assert share_cropped(image, (height, width)) <= 0.08


def test_sizes_for_images():
    assert size_for_image((4032, 3024), (480, 832), (16, 16)) == (720, 544)
    assert size_for_image((1080, 1920), (480, 832), (16, 16)) == (480, 832), "the model's own"
    assert size_for_image((1920, 1080), (480, 832), (16, 16)) == (832, 480), "turned"
    assert size_for_image((1, 10_000), (480, 832), (16, 16)) == (304, 1216), "4 : 1 at most"


def test_sizes_that_cannot_be_used_are_left_out():
    """720 × 544 has 45 × 34 tokens, which 8 ranks cannot share."""
    height, width = size_for_image(
        (4032, 3024), (480, 832), (16, 16), lambda h, w: (h // 16) * (w // 16) % 8 == 0
    )
    assert (height // 16) * (width // 16) % 8 == 0
    assert share_cropped((4032, 3024), (height, width)) < 0.05
    none = size_for_image((4032, 3024), (480, 832), (16, 16), lambda h, w: False)
    assert none == (480, 832)
