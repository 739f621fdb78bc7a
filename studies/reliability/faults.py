"""Faults, planted into one rank of a job in a moment of its work."""

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from lvsa.cp_plans.apply import GatherHook
from lvsa.exchange.needed import Needed
from lvsa.launch.loading import sharded, weights
from lvsa.launch.media import encoder
from lvsa.launch.processes.progress import DONE, TOGETHER, Progress

# Denoising step, counted from 0, in which faults of the loop are planted.
STEP = 2
# Call of the decoder, counted from 0 on each rank, in which faults of shared decoding are planted.
CALL = 2
# Seconds that the first rank's lonely work takes, so that the others are disturbed meanwhile.
SLOW = 3.0
# Bytes that no machine has.
TOO_MUCH = 1 << 60


def _stay(number: int) -> None:
    os.kill(os.getpid(), number)
    # Until the signal has its effect.
    time.sleep(60)


def _raise() -> None:
    raise KeyError("planted")


KINDS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: _stay(signal.SIGKILL),
    "SIGSTOP": lambda: _stay(signal.SIGSTOP),
    "SIGTERM": lambda: _stay(signal.SIGTERM),
    "exception": _raise,
    "out of memory": lambda: torch.empty(TOO_MUCH),
}
# Phases in which ranks share what else one has, with what asks for it: weights are sent, and then
# gathered block by block in each step; rows of frames are decoded, or several tiles.
SHARED = {
    "sending": ("--shard-weights",),
    "blocks": ("--shard-weights",),
    "rows": ("--vae-parallel", "on"),
    "tiles": ("--vae-tiling", "--width", "512", "--num-frames", "21"),
}
PHASES = (
    "loading", "encoding", "denoising", "exchange", "gather", "decoding", "writing", *SHARED,
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        phase: of `PHASES`, when it happens.
        rank: to which rank.
        kind: of `KINDS`, what happens.
    """

    phase: str
    rank: int
    kind: str


def all_faults(world: int) -> list[Fault]:
    """Every kind in every phase, on the first rank and on the last."""
    return [Fault(*row) for row in itertools.product(PHASES, (0, world - 1), KINDS)]


def plant(fault: Fault, rank: int, marker: Path) -> None:
    """Changes this process so that the fault happens, if it is its own.

    Args:
        fault: to be planted.
        rank: of this process.
        marker: file into which the moment is written, seconds since the epoch.
    """
    alone = fault.phase in ("decoding", "writing")
    if alone and rank == 0 and fault.rank != 0:
        _before(*_moment(fault.phase), lambda: time.sleep(SLOW))
    if rank != fault.rank:
        return

    def strike() -> None:
        if not marker.exists():
            marker.write_text(str(time.time()))
            KINDS[fault.kind]()

    # Some functions are called in other phases too.
    at: dict[str, Any] = {}
    if fault.phase in ("exchange", "gather", "blocks"):
        _before(*_moment(fault.phase), lambda: strike() if at.get("step") == STEP else None)
        _when_moved(lambda phase, step: at.update(step=step))
    elif fault.phase in ("rows", "tiles"):
        calls = itertools.count()
        _before(*_moment(fault.phase), lambda: strike() if next(calls) == CALL else None)
    elif fault.phase == "writing" and rank == 0:
        _before(*_moment(fault.phase), lambda: strike() if at["phase"] == fault.phase else None)
        _when_moved(lambda phase, step: at.update(phase=phase))
    elif fault.phase == "sending" or (
        fault.phase in ("loading", "decoding", "encoding") and rank == 0
    ):
        _before(*_moment(fault.phase), strike)
    else:
        phase = {"denoising": TOGETHER, "decoding": DONE, "writing": DONE}.get(fault.phase)
        wanted = (phase or fault.phase, STEP if fault.phase == "denoising" else None)
        _when_moved(lambda phase, step: strike() if (phase, step) == wanted else None)


def _moment(phase: str) -> tuple[Any, str]:
    """A function that is called in the phase, by its owner and name."""
    return {
        "loading": (weights, "load_pipeline"),
        "encoding": (diffusers.WanPipeline, "encode_prompt"),
        "exchange": (Needed, "stream"),
        "gather": (GatherHook, "__call__"),
        "decoding": (diffusers.AutoencoderKLWan, "decode"),
        "writing": (encoder, "count_frames"),
        "sending": (sharded, "shard"),
        "blocks": (WanTransformerBlock, "forward"),
        "rows": (WanDecoder3d, "forward"),
        "tiles": (WanDecoder3d, "forward"),
    }[phase]


def _before(owner: Any, name: str, first: Callable[[], object]) -> None:
    usual = getattr(owner, name)

    # Plans are held against the arguments of what they name.
    @functools.wraps(usual)
    def planted(*args: Any, **options: Any) -> Any:
        first()
        return usual(*args, **options)

    setattr(owner, name, planted)


def _when_moved(then: Callable[[str, int | None], object]) -> None:
    usual = Progress._move

    def moved(self: Progress, phase: str, step: int | None) -> None:
        usual(self, phase, step)
        then(phase, step)

    Progress._move = moved  # type: ignore[method-assign]
