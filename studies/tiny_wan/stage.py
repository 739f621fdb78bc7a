"""A stage of training: its loop, optimizer steps and checkpoint."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from lvsa.studies.tiny_wan import checkpoints
from lvsa.studies.tiny_wan.progress import Progress

logger = logging.getLogger(__name__)

SMOOTHING = 0.98
"""Decay of the running mean of the losses that are shown."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings that every stage has."""

    steps: int
    """Optimizer steps."""
    minutes: float | None = None
    """Time after which the stage ends although steps are left."""
    batch: int
    """Clips in a step."""
    rate: float
    """Highest learning rate."""
    save_every: int
    """Steps between checkpoints."""


class Stage:
    """A model in training, going on from its checkpoint if there is one.

    Args:
        name: of the progress bar, and of the checkpoint ``NAME.pt`` in ``work``.
        model: on its device.
        optimizers: of the model's parameters.
        settings: of the stage.
        work: folder of the checkpoint.

    Attributes:
        restored: the checkpoint that training went on from; empty for a fresh start.
        step: steps done.
        ended: whether steps or minutes have run out.
        loss: running mean of the losses given to `descend`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizers: list[Optimizer],
        settings: StageSettings,
        work: Path,
    ) -> None:
        self.name, self.model, self.optimizers = name, model, optimizers
        self.settings, self.path = settings, work / f"{name}.pt"
        self.restored = checkpoints.load(self.path) or {}
        if self.restored:
            model.load_state_dict(self.restored["model"])
            for optimizer, state in zip(optimizers, self.restored["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self.step: int = self.restored.get("step", 0)
        self.progress = Progress(
            settings.steps, settings.minutes, self.restored.get("seconds", 0.0)
        )
        self.ended = self.step >= settings.steps
        self.loss: float | None = None

    @property
    def share(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        return self.progress.share(self.step)

    def steps(self) -> Iterator[int]:
        """Numbers of the steps that are left; each must call `descend` once."""
        with tqdm(initial=self.step, total=self.settings.steps, desc=self.name) as bar:
            while not self.ended:
                yield self.step
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix(loss=f"{self.loss:.5f}")

    def descend(self, loss: Tensor, shown: Tensor | None = None) -> None:
        """A step of all optimizers down the gradient of a loss.

        Args:
            loss: scalar.
            shown: scalar to show instead of the loss.
        """
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.progress.set_rate(self.optimizers, self.settings.rate, self.step)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.ended = self.share == 1.0
        value = float((loss if shown is None else shown).detach())
        before = value if self.loss is None else self.loss
        self.loss = SMOOTHING * before + (1 - SMOOTHING) * value

    def due(self, every: int) -> bool:
        """Whether something is to be done now that is done every so many steps, and at the end."""
        return self.ended or self.step % every == 0

    def save(self, **more: Any) -> None:
        """Writes the checkpoint, with what else must be kept."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.progress.seconds,
        }
        checkpoints.save({**state, **more}, self.path)
        logger.info("%s step %d: loss %.5f", self.name, self.step, self.loss)
