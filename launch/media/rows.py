"""Rows of every frame of a VAE's decoding, spread over the ranks of a video by DistVAE.

The VAE's own ``decode`` runs on every rank, frame after frame, in lock-step. DistVAE (PyPI:
``distvae``, of xDiT's authors) puts layers into its decoder that keep to a band of rows each:
convolutions fetch the rows of neighboring bands that they reach into, attention gathers whole
frames, and in the end the bands are put together. Nothing is blended and no seam can show; what
differs from one process is the order in which a few numbers are added.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from torch import Tensor, nn
from torch import distributed as dist
from torch.overrides import TorchFunctionMode

from lvsa.comm import group_rank
from lvsa.wrapping import wrap_method

SERIES = "0.1"
"""Versions of DistVAE that have run here."""
EXTRA = "pip install 'distvae>=0.1,<0.2', or lvsa-launcher[vae]"
SERVED = (AutoencoderKLWan, AutoencoderKLHunyuanVideo15)
"""VAEs whose frames ranks have shared here, to 1e-5 in float32; DistVAE knows more."""

WORTH = 5 * 10**8
"""Weights of a decoder × pixels of a latent frame from which two processes of one machine decode it
faster than one: below, they wait for one another's rows longer (docs/benchmarks.md)."""


def distvae_missing() -> str | None:
    """Why DistVAE cannot be used, and how it is installed; None where it can."""
    try:
        found = version("distvae")
    except PackageNotFoundError:
        return f"DistVAE is not installed: {EXTRA}"
    if not f"{found}.".startswith(f"{SERIES}."):
        return f"DistVAE {found} is installed, and {SERIES} is needed: {EXTRA}"
    return None


def most_ranks(vae: Any, rows: int) -> int:
    """Ranks that can share frames of so many rows of latents: each needs one.

    Where pixels leave the decoder in patches, DistVAE cuts between rows that the patch divides.
    """
    return rows // (getattr(vae.config, "patch_size", None) or 1)


def work(vae: Any, pixels: int) -> int:
    """What decoding a latent frame of so many pixels takes, to be held against `WORTH`."""
    return pixels * sum(weight.numel() for weight in vae.decoder.parameters())


@contextmanager
def sharing_rows(vae: Any, group: dist.ProcessGroup) -> Iterator[None]:
    """A VAE whose frames are decoded by the ranks of a group together, while the context lasts.

    All of them call its ``decode`` with the same latents. The first gets the video, the others a
    tensor without frames.

    Raises:
        ValueError: in ``decode``, on every rank alike, for more ranks than `most_ranks`.
    """
    from distvae.vae import parallelize_decoder

    with ExitStack() as undo:
        undo.callback(_restore, vae, set(vars(vae)), _structure(vae))
        with _WithoutInit():
            parallelize_decoder(vae, group)
        forward = vae.decoder.forward

        @functools.wraps(forward)
        def decoder(*args: Any, **options: Any) -> Tensor:
            frames_BCFHW: Tensor = forward(*args, **options)
            return frames_BCFHW if group_rank(group) == 0 else frames_BCFHW[:, :, :0]

        undo.callback(wrap_method(vae.decoder, "forward", decoder))
        yield


class _WithoutInit(TorchFunctionMode):
    """Layers are made without random weights: DistVAE gives them those of the VAE."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _structure(vae: nn.Module) -> list[tuple[nn.Module, dict[str, nn.Module | None]]]:
    """Every module with its children: DistVAE replaces some of them where they stand."""
    return [(module, dict(module._modules)) for module in vae.modules()]


def _restore(
    vae: nn.Module, own: set[str], before: list[tuple[nn.Module, dict[str, nn.Module | None]]]
) -> None:
    """Gives a VAE its own layers back, and takes away what DistVAE has noted in it."""
    for module, children in before:
        module._modules.clear()
        module._modules.update(children)
    for name in set(vars(vae)) - own:
        delattr(vae, name)
