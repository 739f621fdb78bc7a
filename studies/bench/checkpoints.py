"""What checkpoints cost: real ones of a long video's denoising, beside products of matrices.

    python studies/bench/checkpoints.py

A loop with the scheduler of Wan runs on latents of a full-size video. Each of its steps multiplies
matrices for some seconds, as a transformer would, with a checkpoint after every step or without.
"""

import logging
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import tyro
from diffusers import UniPCMultistepScheduler
from torch import Tensor, nn

from lvsa.launch.checkpoint.folder import INPUTS, STATE, CheckpointFolder
from lvsa.launch.checkpoint.identity import Identity
from lvsa.launch.checkpoint.keeper import Keeper
from lvsa.launch.checkpoint.loop import DenoisingLoop
from lvsa.launch.records.output import write_record

logger = logging.getLogger("lvsa.studies.bench.checkpoints")


@dataclass(frozen=True)
class CheckpointBench:
    """Checkpoints beside the denoising of Wan 14B, 641 frames of 1280 × 720 pixels by default."""

    shape: tuple[int, ...] = (1, 16, 161, 90, 160)
    """Of the latents: batch, channels, frames, rows, columns."""
    embeddings: tuple[int, ...] = (2, 1, 512, 4096)
    """Of the texts: prompt and negative prompt, batch, tokens, channels."""
    step_seconds: float = 20.0
    """Seconds that a step multiplies matrices, without checkpoints."""
    steps: int = 4
    """Steps with checkpoints, and as many without."""
    matrix: int = 1024
    """Rows and columns of the matrices."""
    folder: Path | None = None
    """Where checkpoints go. Default: a temporary folder."""
    output: Path | None = None
    """A JSON file for the result."""


class Products(nn.Module):
    """In the place of a transformer: so many products of matrices."""

    def __init__(self, size: int, number: int) -> None:
        super().__init__()
        self.matrix, self.number = torch.randn(size, size), number

    def forward(self, hidden_states: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Returns the latents as they are."""
        for _ in range(self.number):
            torch.mm(self.matrix, self.matrix)
        return (hidden_states,)


def bench(config: CheckpointBench) -> dict[str, Any]:
    """Seconds that checkpoints take from the loop, and what they are of."""
    torch.manual_seed(0)
    model = Products(config.matrix, 1)
    started = time.perf_counter()
    while time.perf_counter() - started < 1:
        model(torch.empty(0))
        model.number += 1
    one = (time.perf_counter() - started) / (model.number * (model.number - 1) / 2)
    model.number = max(1, round(config.step_seconds / one))
    plain = _steps(config, model, None)
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        keeper = Measured(
            CheckpointFolder(Path(folder), Identity({"name": "bench"})),
            seconds=0,
            inputs=[("encode_prompt", torch.randn(config.embeddings).unbind())],
        )
        kept = _steps(config, model, keeper)
        sizes = {name: (keeper.folder.path / name).stat().st_size for name in (INPUTS, STATE)}
    loop, cost = median(keeper.copying), median(keeper.costs)
    return {
        "config": {name: str(value) for name, value in asdict(config).items()},
        "threads": torch.get_num_threads(),
        "bytes": sizes,
        "seconds_per_step_without": plain,
        "seconds_per_step_with": kept,
        "seconds_of_the_loop": keeper.copying,
        "seconds_of_a_processor": keeper.costs,
        "share_of_a_step": loop / median(plain),
        "shortest_step_for_1_percent": 100 * loop,
        "shortest_step_on_the_same_processors": 100 * cost,
    }


class Measured(Keeper):
    """A keeper that notes what each checkpoint took."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.costs: list[float] = []
        """Seconds of the loop and of a processor beside it, together."""
        self.copying: list[float] = []
        """Seconds for which the loop stood still."""

    def keep(self, state: Any, device: torch.device) -> None:
        """Notes how long the loop stands still, without the wait for the last one."""
        self.wait()
        started = time.perf_counter()
        super().keep(state, device)
        self.copying.append(time.perf_counter() - started)

    def wait(self) -> None:
        """Notes the cost of what has been written."""
        writing = self._writing is not None
        super().wait()
        if writing:
            self.costs.append(self.pace.cost)


def _steps(config: CheckpointBench, model: Products, keeper: Keeper | None) -> list[float]:
    """Seconds of each step of a loop."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    pipe = SimpleNamespace(scheduler=scheduler)
    loop = DenoisingLoop(pipe, [model], [torch.Generator()], torch.device("cpu"))
    loop.listener = None if keeper is None else keeper.keep
    latents, seconds = torch.randn(config.shape), []
    with loop.followed():
        scheduler.set_timesteps(config.steps)
        for t in scheduler.timesteps:
            started = time.perf_counter()
            output = model(hidden_states=latents, return_dict=False)[0]
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
            seconds.append(time.perf_counter() - started)
    if keeper is not None:
        keeper.wait()
    return seconds


def summary(result: dict[str, Any]) -> str:
    """The result for a reader."""
    size, inputs = result["bytes"][STATE] / 1e6, result["bytes"][INPUTS] / 1e6
    loop, cost = (
        median(result[name]) for name in ("seconds_of_the_loop", "seconds_of_a_processor")
    )
    return "\n".join(
        [
            f"a checkpoint   {size:.0f} MB after each step; {inputs:.0f} MB once, before the first",
            f"a step         {median(result['seconds_per_step_without']):.2f} s without, "
            f"{median(result['seconds_per_step_with']):.2f} s with a checkpoint (medians)",
            f"the loop       stands still for {loop:.3f} s, "
            f"{100 * result['share_of_a_step']:.2f} % of this step; under 1 % of steps of "
            f"{100 * loop:.0f} s and more",
            f"with writing   {cost:.3f} s of a processor; where that would denoise meanwhile, "
            f"under 1 % of steps of {100 * cost:.0f} s and more",
        ]
    )


def main() -> None:
    """Runs the benchmark from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = tyro.cli(CheckpointBench, description=__doc__)
    result = bench(config)
    sys.stdout.write(summary(result) + "\n")
    if config.output is not None:
        write_record(config.output, result)


if __name__ == "__main__":
    main()
