"""LoRAs that distill Wan to 4 steps, and how they are sampled: without guidance, at shift 5.

As in ModelTC's Wan2.2-Lightning, wan/configs/wan_*_A14B.py (steps, shift, boundary, guidance), and
LightX2V, configs/distill. UniPC, the checkpoints' own scheduler, takes 4 steps at the noise levels
that these LoRAs learned; Euler of diffusers takes others.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class DistilledLora:
    """LoRAs for one checkpoint."""

    name: str
    """Checkpoint that they are for, as its authors call it."""
    repository: str
    """Id on the model hub."""
    steps: int = 4
    """Denoising steps."""
    guidance: float = 1.0
    """Scale of guidance, of both transformers: 1 is none."""
    flow_shift: float = 5.0
    """Shift of the noise levels."""


DISTILLED_LORAS = (
    DistilledLora("Wan 2.1 T2V 14B", "lightx2v/Wan2.1-Distill-Loras"),
    DistilledLora("Wan 2.1 I2V 14B 480P", "lightx2v/Wan2.1-Distill-Loras"),
    DistilledLora("Wan 2.2 T2V A14B", "lightx2v/Wan2.2-Lightning"),
    DistilledLora("Wan 2.2 I2V A14B", "lightx2v/Wan2.2-Lightning"),
)


def distilled_lora(sources: Iterable[str]) -> DistilledLora | None:
    """The first known one among hub ids, which a path in the repository may follow."""
    known = {lora.repository: lora for lora in DISTILLED_LORAS}
    ids = ("/".join(source.split("/")[:2]) for source in sources)
    return next((known[id] for id in ids if id in known), None)
