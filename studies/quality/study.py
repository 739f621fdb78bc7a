"""Study of the tiny Wan's video at its training horizon and beyond it, dense and with LVSA.

    python studies/quality/study.py --part all

Results go to a JSON file as they come; a run goes on where an earlier one stopped. The report
(a table, a plot and contact sheets) is made from that file alone.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import LVSAError
from lvsa.launch.processes.environment import Place
from lvsa.launch.processes.reporting import run_reporting
from lvsa.launch.records.output import written_whole
from lvsa.settings import flag
from lvsa.studies.quality import report
from lvsa.studies.quality.generation import VARIANTS, generate, load, video_frames
from lvsa.studies.quality.measures import measure
from lvsa.studies.tiny_wan import sheets
from lvsa.studies.tiny_wan.captions import held_out
from lvsa.studies.tiny_wan.clips import draw_clip, render

HORIZON = TINY_WAN.horizon
"""Latent frames of the training clips."""
CAPTIONS = [scene.caption for scene in held_out()]
"""Captions that training never showed."""


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

    def check(self) -> None:
        """Checks the settings.

        Raises:
            LVSAError: for one that cannot work.
        """
        for name in ("steps", "seeds", "captions"):
            if getattr(self, name) < 1:
                raise LVSAError(f"{flag(name)} is {getattr(self, name)}; it must be at least 1")
        if self.captions > len(CAPTIONS):
            raise LVSAError(f"--captions is {self.captions}; there are {len(CAPTIONS)}")
        if min(self.lengths, default=2) < 2:
            raise LVSAError(f"--lengths has {min(self.lengths)}; each must be at least 2")


class Batch(NamedTuple):
    """Videos that are generated together."""

    variant: str
    latent_frames: int
    seed: int
    captions: tuple[str, ...]

    @property
    def sheet(self) -> str:
        """File name of the contact sheet."""
        if self.latent_frames == HORIZON:
            half = 1 if self.captions[0] == CAPTIONS[0] else 2
            return f"horizon-seed{self.seed}-{half}.png"
        words = self.variant.replace(",", "").replace(" ", "-")
        return f"{words}-{self.latent_frames}-seed{self.seed}.png"


def batches(study: Study) -> Iterator[Batch]:
    """Batches of a study, one seed after the other."""
    if study.part in ("all", "horizon"):
        half = len(CAPTIONS) // 2
        for seed, captions in itertools.product(range(2), (CAPTIONS[:half], CAPTIONS[half:])):
            yield Batch("dense", HORIZON, seed, tuple(captions))
    if study.part in ("all", "beyond"):
        chosen = tuple(CAPTIONS[:: len(CAPTIONS) // study.captions][: study.captions])
        for seed, latent in itertools.product(range(study.seeds), study.lengths):
            for variant in (report.DRAWN, *VARIANTS):
                yield Batch(variant, latent, seed, chosen)


def videos_of(batch: Batch, pipe: Any, study: Study) -> Tensor:
    """Videos ``[B, F, 3, 64, 64]`` of a batch, 0 to 1: generated, or drawn as the training data."""
    variant, latent_frames, seed, captions = batch
    if variant != report.DRAWN:
        return generate(
            pipe,
            captions,
            variant=variant,
            latent_frames=latent_frames,
            seed=seed,
            steps=study.steps,
            guidance=study.guidance,
        )
    scenes = {scene.caption: scene for scene in held_out()}
    frames = video_frames(latent_frames)
    clips = [
        draw_clip(scenes[caption], frames, np.random.default_rng([99, seed, i]))
        for i, caption in enumerate(captions)
    ]
    return (render(clips).transpose(1, 2) + 1) / 2


def run(study: Study) -> list[dict[str, Any]]:
    """All results, after generating and measuring those that were missing.

    Raises:
        LVSAError: for settings that cannot work, or a missing pipeline.
    """
    study.check()
    results: list[dict[str, Any]] = []
    if study.results.exists():
        results = json.loads(study.results.read_text())
    have = {(r["variant"], r["latent_frames"], r["seed"], r["caption"]) for r in results}
    wanted = [
        batch._replace(captions=missing)
        for batch in batches(study)
        if (missing := tuple(c for c in batch.captions if (*batch[:3], c) not in have))
    ]
    if not wanted:
        return results
    pipe = load(study.model)
    pipe.set_progress_bar_config(disable=True)
    for batch in tqdm(wanted, desc="study"):
        videos = videos_of(batch, pipe, study)
        results += [
            result(batch, caption, video)
            for caption, video in zip(batch.captions, videos, strict=True)
        ]
        write_json(results, study.results)
        sheet = study.docs / "quality" / batch.sheet
        sheets.save_sheet(videos.transpose(1, 2) * 2 - 1, sheet, columns=12)
    return results


def result(batch: Batch, caption: str, video: Tensor) -> dict[str, Any]:
    """Measures of a video ``[F, 3, H, W]``, 0 to 1, with what it is of."""
    quality = measure(video.permute(0, 2, 3, 1).numpy(), caption)
    return {
        "variant": batch.variant,
        "latent_frames": batch.latent_frames,
        "seed": batch.seed,
        "caption": caption,
        "moves": quality.moves,
        "color_right": quality.color_right,
        "shape_right": quality.shape_right,
        **asdict(quality),
    }


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
