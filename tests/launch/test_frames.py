"""Frames that leave the VAE as it decodes: the bits of the pipeline's own, and no more memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lvsa.launch.media.frames import decode, grows_with_video
from tests.support.tiny import wan_vae
from tests.support.tiny_cogvideox import cogvideox_vae
from tests.support.tiny_hunyuan import hunyuan_vae
from tests.support.tiny_wan_family import ti2v_vae

# With the pixels of a latent pixel, for those that decode in tiles here.
VAES = {
    "wan": (wan_vae, None),
    "wan, tiles": (wan_vae, 8),
    "ti2v": (ti2v_vae, None),
    "ti2v, tiles": (ti2v_vae, 16),
    "cogvideox": (cogvideox_vae, None),
    "cogvideox, tiles": (cogvideox_vae, 8),
    "hunyuan": (hunyuan_vae, None),
    "hunyuan, tiles": (hunyuan_vae, 16),
}


def pipeline(name):
    """A VAE with its video processor; tiles are of 2 × 2 latent pixels, and overlap by one."""
    torch.manual_seed(0)
    build, pixels = VAES[name]
    vae = build().eval()
    if pixels is not None:
        vae.enable_tiling(tile_sample_min_height=2 * pixels, tile_sample_min_width=2 * pixels)
        sizes = {"tile_sample_stride": pixels, "tile_latent_min": 2}
        for attribute, size in sizes.items():
            for side in ("height", "width"):
                if hasattr(vae, f"{attribute}_{side}"):
                    setattr(vae, f"{attribute}_{side}", size)
    return SimpleNamespace(vae=vae, video_processor=VideoProcessor())


def latents_of(T, height=3, width=4):
    return torch.randn(1, 4, T, height, width, generator=torch.Generator().manual_seed(1))


def frames_of(pipe, latents):
    """Frames, with the number of the decoder's calls by the time that each was written."""
    written, calls, at = [], [], []
    handle = pipe.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))

    def write(frame):
        written.append(frame)
        at.append(len(calls))

    decode(pipe, latents, write)
    handle.remove()
    return np.stack(written), at


@pytest.mark.parametrize("T", [1, 4, 5])
@pytest.mark.parametrize("name", VAES)
def test_the_bits_of_the_pipeline(name, T):
    pipe, latents = pipeline(name), latents_of(T)
    with torch.no_grad():
        whole = pipe.vae.decode(latents, return_dict=False)[0]
    expected = pipe.video_processor.postprocess_video(whole, output_type="np")[0]
    frames, at = frames_of(pipe, latents)
    assert np.array_equal(frames, expected) and expected.std() > 0
    if grows_with_video(pipe.vae, tiled="tiles" in name) is None:
        assert T == 1 or at[0] == 1 < at[-1], "the first frames came before the last were decoded"
    else:
        assert at[0] == at[-1]
    assert "forward" not in vars(pipe.vae.decoder) and "tiled_decode" not in vars(pipe.vae)


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that an operation made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(out) if torch.is_tensor(x)]
        self.bytes = max([self.bytes, *sizes])
        return out


@pytest.mark.parametrize("name", ["wan", "ti2v", "cogvideox"])
def test_no_tensor_grows_with_the_video(name):
    pipe, sizes = pipeline(name), []
    for T in (5, 21):
        with Largest() as largest:
            decode(pipe, latents_of(T, 2, 2), lambda frame: None)
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] > 0


def test_an_error_in_the_encoder_leaves_the_vae_as_it_was():
    pipe = pipeline("wan")

    def full(frame):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        decode(pipe, latents_of(3), full)
    assert "forward" not in vars(pipe.vae.decoder)
    frames, _ = frames_of(pipe, latents_of(3))
    assert len(frames) == 9
