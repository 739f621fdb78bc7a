"""Tiles of a VAE's decoding, spread over the ranks of a video: the same tiles, and the same bits.

The VAE's own ``tiled_decode`` runs on every rank, but each tile is decoded by one of them, in turn,
and sent to the first, which puts all of them together as it always does.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from torch import Tensor
from torch import distributed as dist

from lvsa.comm import group_rank, group_size
from lvsa.wrapping import wrap_method

if TYPE_CHECKING:
    from lvsa.launch.job import Job

# VAEs whose decoders are shared, with whether a call of the decoder, by its options, begins a tile.
BEGINS: dict[type, Callable[[dict[str, Any]], bool]] = {
    AutoencoderKLWan: lambda options: bool(options.get("first_chunk")),
    AutoencoderKLCogVideoX: lambda options: options["conv_cache"] is None,
    AutoencoderKLHunyuanVideo15: lambda options: True,
}


def decodes_in_tiles(job: "Job") -> bool:
    """Whether the VAE of a job decodes in tiles, where a video is larger than one."""
    return job.adapter.tiled_vae or job.config.tuning.vae_tiling


@contextmanager
def sharing_tiles(vae: Any, group: dist.ProcessGroup | None) -> Iterator[None]:
    """A VAE whose tiles are decoded by the ranks of a group in turn, while the context lasts.

    All of them call its ``decode`` with the same latents. The first gets the video, the others a
    tensor without frames.

    Args:
        group: the ranks; None for one process, where nothing is changed.
    """
    if group_size(group) == 1:
        yield
        return
    begins, tiles = BEGINS[type(vae)], _Tiles(group)
    forward = vae.decoder.forward
    # Wan's decoder may return patches, which become pixels behind it.
    channels = 3 * (getattr(vae.config, "patch_size", None) or 1) ** 2

    @functools.wraps(forward)
    def decoder(z_BCTHW: Tensor, **options: Any) -> Any:
        if begins(options):
            tiles.begun += 1
        # What CogVideoX keeps for the frames to come is None before the first of a tile only.
        kept: list[Any] = [{}] if "conv_cache" in options else []
        frames = None
        if tiles.owner == tiles.rank:
            result = forward(z_BCTHW, **options)
            frames, *kept = result if isinstance(result, tuple) else (result,)
            tiles.send(frames)
        elif tiles.rank == 0:
            frames = tiles.receive(z_BCTHW)
        if tiles.rank > 0:
            B, _, _, H, W = z_BCTHW.shape
            frames = z_BCTHW.new_empty(B, channels, 0, H, W)
        return (frames, *kept) if kept else frames

    with ExitStack() as undo:
        undo.callback(wrap_method(vae.decoder, "forward", decoder))
        yield
        tiles.wait()


class _Tiles:
    """Whose turn it is among the ranks of a group, and what is on its way to the first of them."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group, self.rank, self.world = group, group_rank(group), group_size(group)
        self.begun = 0
        """Tiles that were begun, the one at work included."""
        self._sent: list[tuple[Tensor, dist.Work]] = []

    @property
    def owner(self) -> int:
        """The rank that decodes the tile at work."""
        return (self.begun - 1) % self.world

    def send(self, frames: Tensor) -> None:
        """Sends frames to the first rank, and holds them until they have arrived."""
        if self.rank == 0:
            return
        self._sent = [(tensor, work) for tensor, work in self._sent if not work.is_completed()]
        shape = torch.tensor(frames.shape, device=frames.device)
        for tensor in (shape, frames.contiguous()):
            work = dist.isend(tensor, group=self.group, group_dst=0)
            assert work is not None, "this rank is in the group"
            self._sent.append((tensor, work))

    def receive(self, like: Tensor) -> Tensor:
        """The next frames of the tile at work, of the dtype and on the device of ``like``."""
        shape = torch.empty(like.dim(), dtype=torch.int64, device=like.device)
        dist.recv(shape, group=self.group, group_src=self.owner)
        frames = like.new_empty(shape.tolist())
        dist.recv(frames, group=self.group, group_src=self.owner)
        return frames

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for _, work in self._sent:
            work.wait()
