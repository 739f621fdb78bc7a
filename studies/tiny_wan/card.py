"""The model card of the trained pipeline."""

from pathlib import Path

from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.studies.tiny_wan import checkpoints
from lvsa.studies.tiny_wan.captions import COLORS, SHAPES
from lvsa.studies.tiny_wan.dit_stage import DiTTraining
from lvsa.studies.tiny_wan.model import FLOW_SHIFT
from lvsa.studies.tiny_wan.vae_stage import VAETraining

CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-video
---

# tiny-wan

A Wan text-to-video pipeline of {millions:.1f} million weights that makes 64×64 video of colored
shapes. It has every part of Wan 2.1 (UMT5 text encoder, transformer, causal 3D VAE with 8×
compression in space and 4× in time, flow matching) and was trained from nothing. It exists to
check launchers and attention patterns end to end with video that can be looked at and measured,
on any machine.

```python
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("assets/tiny-wan")
video = pipe(
    "a red circle bounces",
    height=64,
    width=64,
    num_frames={video_frames},
    num_inference_steps={steps},
    guidance_scale={guidance:g},
).frames[0]
```

## Data

Clips drawn by a program: one shape, or two that meet, on a dim shaded background.

- Colors: {colors}.
- Shapes: {shapes}.
- Motions: bounces, circles, drifts left, right, up or down (out at one edge and in at the other),
  meet.

Captions read "a red circle bounces" or "a red circle and a blue ring meet". 20 captions were kept
out of training. No recorded video, no downloaded weights.

## Recipe

- Training horizon: {frames} latent frames ({video_frames} video frames).
- VAE: {vae_steps} steps, {vae_minutes:.0f} minutes; single frames, then clips of 5, {vae_frames}
  and {long_frames} frames, with cuts so that no latent frame leans on the first. The loss is
  squared and absolute error, a small divergence term and, where clips stand still, the difference
  between the first latent frame (of one video frame) and the second (of four), weight {first:g}.
  Squared reconstruction error on clips of {video_frames} frames not in training: {mse:.4f}
  (range −1 to 1).
- Transformer and text encoder together: {dit_steps} steps, {dit_minutes:.0f} minutes on
  {clips} clips; rectified flow with shift {shift:g}, {dropout:.0%} of captions left out,
  running mean of the weights with decay {average:g}.
- Muon for matrices, AdamW for the rest, learning rate {vae_rate:g} and {dit_rate:g}.
- Seed {seed}; machine: {machine}. `studies/tiny_wan/train.py` repeats all of it.

## Limits

It knows these words, this size and nothing else. Its text encoder spells out other words in
bytes that it has never seen. Beyond {video_frames} frames it extrapolates. `docs/quality.md` says
how well it keeps to its captions at {video_frames} frames and beyond.
"""


def model_card(
    work: Path,
    millions: float,
    mse: float,
    clips: int,
    seed: int,
    machine: str,
    vae: VAETraining,
    dit: DiTTraining,
) -> str:
    """Text of the card, from the settings of both stages and their checkpoints.

    Args:
        work: folder of the checkpoints.
        millions: of weights in all parts.
        mse: error of the VAE, pixels in −1 to 1.
        clips: in the training data.
        seed: of the training.
        machine: what it ran on, in words.
        vae, dit: settings of the stages.
    """
    vae_state = checkpoints.require(work / "vae.pt")
    dit_state = checkpoints.require(work / "dit.pt")
    return CARD.format(
        millions=millions,
        colors=", ".join(COLORS),
        shapes=", ".join(SHAPES),
        frames=dit.frames,
        video_frames=4 * dit.frames - 3,
        vae_steps=vae_state["step"],
        vae_minutes=vae_state["seconds"] / 60,
        vae_frames=vae.frames,
        long_frames=3 * vae.frames - 2,
        mse=mse,
        steps=TINY_WAN.defaults.steps,
        guidance=TINY_WAN.defaults.guidance,
        first=vae.first_weight,
        dit_steps=dit_state["step"],
        dit_minutes=dit_state["seconds"] / 60,
        clips=clips,
        shift=FLOW_SHIFT,
        dropout=dit.text_dropout,
        average=dit.average,
        vae_rate=vae.rate,
        dit_rate=dit.rate,
        seed=seed,
        machine=machine,
    )
