"""The VAE's encoder and decoder in two passes, for training.

`AutoencoderKLWan` goes through a video four frames at a time and carries its causal convolutions'
last frames along. The carried frames make the cut invisible, so the first frame and then all the
others at once give the same values, in fewer and larger operations, and without the decoder's
clamp, which would stop gradients.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, cat


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """The VAE itself, its 3D kernels laid out with channels innermost.

    Convolutions of clips that are laid out alike take two thirds of the time on CPUs.
    """
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Means and log variances ``[B, 2·z, 1 + n, H/8, W/8]`` of video ``[B, 3, 1 + 4·n, H, W]``."""
    vae.clear_cache()
    x = patchify(video, vae.config.patch_size or 1)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    parts = []
    for part in (x[:, :, :1], x[:, :, 1:]):
        if part.shape[2]:
            vae._enc_conv_idx = [0]
            parts.append(
                vae.encoder(part, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx)
            )
    vae.clear_cache()
    return vae.quant_conv(cat(parts, dim=2))


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video ``[B, 3, 1 + 4·n, 8·h, 8·w]``, not clamped, of latents ``[B, z, 1 + n, h, w]``."""
    vae.clear_cache()
    x = vae.post_quant_conv(latents.contiguous(memory_format=torch.channels_last_3d))
    parts = []
    for i, part in enumerate((x[:, :, :1], x[:, :, 1:])):
        if part.shape[2]:
            vae._conv_idx = [0]
            parts.append(
                vae.decoder(
                    part,
                    feat_cache=vae._feat_map,
                    feat_idx=vae._conv_idx,
                    first_chunk=i == 0,
                )
            )
    vae.clear_cache()
    return unpatchify(cat(parts, dim=2), vae.config.patch_size or 1)
