"""Study of the tiny Wan's video at its training horizon and beyond it, dense and with LVSA.

    python studies/quality/study.py --part all

Results go to a JSON file as they come; a run goes on where an earlier one stopped. The report
(a table, a plot and contact sheets) is made from that file alone.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import WanPipeline
from torch import Tensor
from tqdm import tqdm

import lvsa
from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import LVSAError
from lvsa.launch.environment import Place
from lvsa.launch.output import written_whole
from lvsa.launch.reporting import run_reporting
from lvsa.studies.quality import report
from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan import sheets
from lvsa.studies.tiny_wan.captions import held_out
from lvsa.studies.tiny_wan.clips import SIZE, draw_clip, render

VARIANTS: dict[str, lvsa.LVSASettings | None] = {
    "dense": None,
    "published, fixed": lvsa.LVSASettings(keyframe_placement="published"),
    "published, rotating": lvsa.LVSASettings(keyframe_placement="published", rotate_keyframes=True),
    "even, fixed": lvsa.LVSASettings(keyframe_placement="even"),
    "even, rotating": lvsa.LVSASettings(keyframe_placement="even", rotate_keyframes=True),
}
DRAWN = "drawn clips"
"""Variant that is not generated, but drawn as the training data is."""
HORIZON = TINY_WAN.horizon
"""Latent frames of the training clips."""


@dataclass(frozen=True)
class Study:
    """Measure generated video at the training horizon and beyond it."""

    model: Path = Path("assets/tiny-wan")
    """Folder of the pipeline."""
    docs: Path = Path("docs")
    """Folder for results, table and pictures."""
    part: Literal["all", "horizon", "beyond", "report"] = "all"
    """What to run; report makes table and pictures of the results there are."""
    steps: int = TINY_WAN.defaults.steps
    """Denoising steps."""
    guidance: float = TINY_WAN.defaults.guidance
    """Guidance scale."""
    seeds: int = 2
    """Seeds for each caption."""
    captions: int = 20
    """Captions beyond the horizon, evenly chosen from the 20 held-out ones."""
    lengths: tuple[int, ...] = (41, 81, 121)
    """Latent frames beyond the training horizon."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""

    @property
    def results(self) -> Path:
        """File of the results."""
        return self.docs / "quality-results.json"


def attention(pipe: WanPipeline, variant: str, frames: int) -> AbstractContextManager[Any]:
    """Context in which the pipeline has a variant's attention, for a number of video frames."""
    settings = VARIANTS[variant]
    if settings is None:
        return nullcontext()
    return lvsa.enable(pipe, num_frames=frames, height=SIZE, width=SIZE, settings=settings)


def generate(
    pipe: WanPipeline, captions: list[str], seed: int, latent: int, variant: str, study: Study
) -> Tensor:
    """Videos ``[B, F, 3, 64, 64]``, 0 to 1; every caption has noise of its own, by seed."""
    frames = 4 * latent - 3
    generators = [
        torch.Generator().manual_seed(1000 * seed + sum(caption.encode())) for caption in captions
    ]
    with attention(pipe, variant, frames):
        found = pipe(
            captions,
            height=SIZE,
            width=SIZE,
            num_frames=frames,
            num_inference_steps=study.steps,
            guidance_scale=study.guidance,
            generator=generators,
            output_type="pt",
        )
    return found.frames.float().cpu()


def cells(study: Study) -> Iterator[tuple[str, int, int, list[str]]]:
    """Variant, latent frames, seed and captions of each batch, one seed after the other."""
    captions = [scene.caption for scene in held_out()]
    if study.part in ("all", "horizon"):
        for seed, half in itertools.product(range(2), (captions[:10], captions[10:])):
            yield "dense", HORIZON, seed, half
    if study.part in ("all", "beyond"):
        chosen = captions[:: max(1, len(captions) // study.captions)][: study.captions]
        for seed, latent in itertools.product(range(study.seeds), study.lengths):
            yield DRAWN, latent, seed, chosen
            for variant in VARIANTS:
                yield variant, latent, seed, chosen


def drawn(captions: list[str], seed: int, latent: int) -> Tensor:
    """Drawn clips ``[B, F, 3, 64, 64]``, 0 to 1: what the training data would be at this length."""
    scenes = {scene.caption: scene for scene in held_out()}
    clips = [
        draw_clip(scenes[caption], 4 * latent - 3, np.random.default_rng([99, seed, i]))
        for i, caption in enumerate(captions)
    ]
    return (render(clips).transpose(1, 2) + 1) / 2


def run(study: Study) -> list[dict[str, Any]]:
    """All results, after generating and measuring those that were missing.

    Raises:
        LVSAError: where the pipeline is missing.
    """
    results: list[dict[str, Any]] = []
    if study.results.exists():
        results = json.loads(study.results.read_text())
    have = {(r["variant"], r["latent_frames"], r["seed"], r["caption"]) for r in results}
    wanted = [
        (variant, latent, seed, missing)
        for variant, latent, seed, captions in cells(study)
        if (missing := [c for c in captions if (variant, latent, seed, c) not in have])
    ]
    if not wanted:
        return results
    if not study.model.is_dir():
        raise LVSAError(f"no pipeline at {study.model}; studies/tiny_wan/train.py makes one")
    pipe = WanPipeline.from_pretrained(study.model)
    pipe.set_progress_bar_config(disable=True)
    for variant, latent, seed, captions in tqdm(wanted, desc="study"):
        if variant == DRAWN:
            videos = drawn(captions, seed, latent)
        else:
            videos = generate(pipe, captions, seed, latent, variant, study)
        for caption, video in zip(captions, videos, strict=True):
            quality = measure(video.permute(0, 2, 3, 1).numpy(), caption)
            results.append(
                {
                    "variant": variant,
                    "latent_frames": latent,
                    "seed": seed,
                    "caption": caption,
                    "moves": quality.moves,
                    "color_right": quality.color_right,
                    "shape_right": quality.shape_right,
                    **asdict(quality),
                }
            )
        write_json(results, study.results)
        sheets.save_sheet(
            videos.transpose(1, 2) * 2 - 1,
            study.docs / "quality" / picture(variant, latent, seed, captions),
            columns=12,
        )
    return results


def picture(variant: str, latent: int, seed: int, captions: list[str]) -> str:
    """File name of a batch's contact sheet."""
    if latent == HORIZON:
        half = 1 if captions[0] == held_out()[0].caption else 2
        return f"horizon-seed{seed}-{half}.png"
    return f"{variant.replace(',', '').replace(' ', '-')}-{latent}-seed{seed}.png"


def write_json(results: list[dict[str, Any]], path: Path) -> None:
    """Writes the results, a video a line, whole or not at all."""
    lines = ",\n".join(json.dumps(result) for result in results)
    with written_whole(path) as part:
        part.write_text(f"[\n{lines}\n]\n")


def main() -> None:
    """The command line."""

    def work(_: Place) -> None:
        study = tyro.cli(Study, description=__doc__)
        if study.threads is not None:
            torch.set_num_threads(study.threads)
        report.write(run(study), study.docs, HORIZON)

    sys.exit(run_reporting(work))


if __name__ == "__main__":
    main()
