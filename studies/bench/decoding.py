"""What decoding on several ranks is worth: a VAE's frames decoded by one, and by all of them.

    python studies/bench/decoding.py --vae wan-2.1 --height 128 --width 128

Weights are random unless they are tiny-wan's. A process has as many threads alone as together, so
that the ratio is that of processors added.
"""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderKLWan
from torch import Tensor
from torch import distributed as dist

from lvsa.launch.loading.models import find_model
from lvsa.launch.media.frames import streaming
from lvsa.launch.media.rows import sharing_rows
from lvsa.launch.rehearsal.ledger import Ledger
from lvsa.studies.bench.processes import run_ranks, settle

logger = logging.getLogger("lvsa.studies.bench.decoding")

VAEName = Literal["tiny-wan", "wan-2.1", "wan-2.2-5b", "hunyuan-1.5"]


@dataclass(frozen=True)
class DecodingBench:
    """Frames of random latents, decoded by one process and by several."""

    vae: VAEName = "tiny-wan"
    """Whose: tiny-wan's with its weights, or one of that size with random ones."""
    world: int = 2
    """Processes on this machine."""
    frames: int = 9
    """Latent frames."""
    height: int = 128
    """Pixels."""
    width: int = 128
    """Pixels."""
    repeats: int = 3
    """Times that both are measured, in turn; the least counts."""
    device: str = "auto"
    """Kind of device."""


def tiny_wan() -> Any:
    """The VAE that comes along, with its weights."""
    return AutoencoderKLWan.from_pretrained(find_model("tiny-wan").folder, subfolder="vae")


def wan_2_2_5b() -> Any:
    """Of the size of Wan 2.2 TI2V-5B's: vae/config.json of Wan-AI/Wan2.2-TI2V-5B-Diffusers."""
    return AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


BUILD: dict[VAEName, Callable[[], Any]] = {
    "tiny-wan": tiny_wan,
    "wan-2.1": AutoencoderKLWan,
    "wan-2.2-5b": wan_2_2_5b,
    "hunyuan-1.5": AutoencoderKLHunyuanVideo15,
}


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """The pixels of latents ``[1, C, T, H, W]``, taken as they come where they do one by one."""
    frames: list[Tensor] = []
    with streaming(vae, frames.append):
        rest = vae.decode(latents, return_dict=False)[0]
    return torch.cat([*frames, rest], dim=2)


@torch.no_grad()
def bench(config: DecodingBench, device: torch.device) -> dict[str, Any]:
    """Seconds, largest bytes of tensors and error of this rank."""
    torch.manual_seed(0)
    vae = BUILD[config.vae]().eval().to(device)
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    factor = vae.spatial_compression_ratio
    shape = (1, channels, config.frames, config.height // factor, config.width // factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    group = dist.group.WORLD
    assert group is not None
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    frames, peaks = {}, {}
    for who, measured in [*seconds.items()] * config.repeats:
        settle(device, group)
        if who == "alone" and dist.get_rank() > 0:
            # As in a generation whose first rank decodes.
            continue
        started = time.perf_counter()
        with nullcontext() if who == "alone" else sharing_rows(vae, group):
            frames[who] = decoded(vae, latents)
            settle(device, None)
            measured.append(time.perf_counter() - started)
            with Ledger() as ledger:
                decoded(vae, latents[:, :, :3])
        peaks[who] = ledger.peak
    error = 0.0
    if dist.get_rank() == 0:
        error = (frames["together"] - frames["alone"]).abs().max().item()
    least = {who: min(each, default=0.0) for who, each in seconds.items()}
    return {"seconds": least, "peaks": peaks, "error": error}


def main() -> None:
    """Prints what was measured."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = tyro.cli(DecodingBench)
    first, *others = run_ranks(config.world, config.device, bench, config)
    seconds, peaks = first["seconds"], first["peaks"]
    logger.info(
        "%s, %d latent frames of %d × %d pixels, %d ranks: alone %.2f s, together %.2f s (%.2f×); "
        "largest difference %.1e; tensors of 3 latent frames at most %.0f MB alone, %s together",
        config.vae, config.frames, config.height, config.width, config.world,
        seconds["alone"], seconds["together"], seconds["alone"] / seconds["together"],
        first["error"], peaks["alone"] / 1e6,
        " and ".join(f"{each['peaks']['together'] / 1e6:.0f}" for each in (first, *others)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
