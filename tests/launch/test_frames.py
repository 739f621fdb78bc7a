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

VAES = {
    "wan": (wan_vae, 4, False),
    "wan, tiles": (wan_vae, 4, True),
    "ti2v": (ti2v_vae, 4, False),
    "cogvideox": (cogvideox_vae, 4, False),
    "cogvideox, tiles": (cogvideox_vae, 4, True),
    "hunyuan": (hunyuan_vae, 4, False),
    "hunyuan, tiles": (hunyuan_vae, 4, True),
}


def pipeline(name):
    """A VAE with its video processor, and the channels of its latents."""
    torch.manual_seed(0)
    build, channels, tiled = VAES[name]
    vae = build().eval()
    if tiled:
        vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
        for side in ("height", "width"):
            for attribute, size in (
                (f"tile_sample_stride_{side}", 8),
                (f"tile_latent_min_{side}", 2),
            ):
                if hasattr(vae, attribute):
                    setattr(vae, attribute, size)
    return SimpleNamespace(vae=vae, video_processor=VideoProcessor()), getattr(
        vae.config, "z_dim", channels
    )


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
    pipe, channels = pipeline(name)
    latents = torch.randn(1, channels, T, 4, 6)
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
    pipe, channels = pipeline(name)
    sizes = []
    for T in (5, 21):
        latents = torch.randn(1, channels, T, 2, 2)
        with Largest() as largest:
            decode(pipe, latents, lambda frame: None)
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] > 0


def test_an_error_in_the_encoder_leaves_the_vae_as_it_was():
    pipe, channels = pipeline("wan")

    def full(frame):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        decode(pipe, torch.randn(1, channels, 3, 4, 6), full)
    assert "forward" not in vars(pipe.vae.decoder)
    frames, _ = frames_of(pipe, torch.randn(1, channels, 3, 4, 6))
    assert len(frames) == 9
