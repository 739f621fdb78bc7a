"""Makes a session ready for each video's token grid: pattern, plans, tables and RIFLEx."""

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from torch import nn

from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.rope_patch import RIFLExOptions, apply_riflex, check_riflex
from lvsa.adapters.install.session import LVSASession
from lvsa.attention import TABLES_KEPT
from lvsa.comm import check_agreement
from lvsa.cp_plans import ModelPlan
from lvsa.cp_plans.trial import validate_plan
from lvsa.errors import SequenceError
from lvsa.pattern import Pattern
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid, Shards

logger = logging.getLogger(__name__)


class VideoGrids:
    """Token grids that a session has met, and what each of them needs.

    Args:
        pipe: the pipeline.
        session: LVSA on it.
        pattern: the user's own pattern, or settings that make one for every grid.
        plans: a transformer without anything installed on it (see `lvsa.cp_plans.trial.meta_twin`)
            and its plan, for every transformer that is cut.
        riflex: None without RIFLEx.

    Raises:
        LVSAError: where RIFLEx cannot do what it is asked for.
    """

    def __init__(
        self,
        pipe: Any,
        session: LVSASession,
        pattern: Pattern | LVSASettings,
        plans: list[tuple[nn.Module, ModelPlan]],
        riflex: RIFLExOptions | None,
    ) -> None:
        self.pipe, self.session, self.plans, self.riflex = pipe, session, plans, riflex
        self.pattern = pattern
        if riflex is not None:
            horizon = session.adapter.training_horizon(pipe)
            check_riflex(session.transformers, horizon, riflex)
        self.only: FrameGrid | None = None
        """The grid that LVSA was enabled for; None where every video may have its own."""
        self.current: FrameGrid | None = None
        self._patterns: OrderedDict[tuple[int, int, int], Pattern] = OrderedDict()

    def switch(self, grid: FrameGrid | None) -> None:
        """Makes the engine that of a video's grid. All ranks must come here with the same one.

        Args:
            grid: what a forward works on; None where its arguments do not tell.

        Raises:
            SequenceError: for another grid than LVSA was enabled for, a pattern of the user's own
                for another length, or a grid that cannot be told and was not given either.
            DivisibilityError: where the tokens do not divide among the ranks.
            PlanError: where a plan does not fit the video.
            RankMismatch: where ranks made other patterns.
        """
        if grid is None:
            if self.only is None:
                raise SequenceError(
                    f"the size of the video cannot be told from what {type(self.pipe).__name__} "
                    "gives its transformer: give num_frames, height and width to enable, or "
                    "override read_grid in the adapter"
                )
            # Their number is all that can be held against it: the engine does.
            return
        if self.current is not None and size(grid) == size(self.current):
            return
        if self.only is not None:
            raise SequenceError(
                f"this forward works on {described(grid)}, and LVSA was enabled for "
                f"{described(self.only)}. Call the pipeline with that length and size, or enable "
                "LVSA without sizes to serve any"
            )
        self.session.attention.configure(self._pattern(grid), grid)
        self._set_riflex(grid.frames)
        self.current = grid

    def pin(self, grid: FrameGrid) -> None:
        """Makes the engine that of this grid for the whole session; errors as `switch`."""
        self.switch(grid)
        self.only = grid

    def _pattern(self, grid: FrameGrid) -> Pattern:
        """The pattern of a grid; a new one is agreed upon, and the plans are tried on the grid."""
        known = self._patterns.get(size(grid))
        if known is not None:
            self._patterns.move_to_end(size(grid))
            return known
        attention = self.session.attention
        Shards(grid, attention.world)
        if isinstance(self.pattern, LVSASettings):
            pattern = make_pattern(self.session.adapter, self.pipe, grid, self.pattern)
        else:
            pattern = self.pattern
            if pattern.frames != grid.frames:
                raise SequenceError(
                    f"the pattern is for {pattern.frames} latent frames; this video has "
                    f"{described(grid)}"
                )
        check_agreement(
            {"pattern": pattern.identity}, self.session.group, what="attention patterns"
        )
        for transformer, plan in self.plans:
            validate_plan(transformer, plan, grid)
        self._patterns[size(grid)] = pattern
        if len(self._patterns) > TABLES_KEPT:
            self._patterns.popitem(last=False)
        return pattern

    def _set_riflex(self, frames: int) -> None:
        if self.riflex is None or (self.current is not None and self.current.frames == frames):
            return
        self.remove_riflex()
        horizon = self.session.adapter.training_horizon(self.pipe)
        self.session.riflex = apply_riflex(self.session.transformers, frames, horizon, self.riflex)

    def remove_riflex(self) -> None:
        """Gives the rotary modules their own frequencies back."""
        if self.session.riflex is not None:
            self.session.riflex.remove()


def make_pattern(
    adapter: ModelAdapter, pipe: Any, grid: FrameGrid, settings: LVSASettings
) -> Pattern:
    """The pattern that settings make for one pipeline; its conditioning frames are anchors."""
    implied = adapter.condition_frames(pipe, grid.frames)
    anchors = tuple(sorted({*settings.condition_latent_frames, *implied}))
    settings = replace(settings, condition_latent_frames=anchors)
    return settings.pattern(
        grid.frames, adapter.temporal_factor(pipe), adapter.training_horizon(pipe)
    )


def size(grid: FrameGrid) -> tuple[int, int, int]:
    """T, rows and columns: what attention depends on."""
    return grid.frames, grid.rows, grid.columns


def described(grid: FrameGrid) -> str:
    """A grid in tokens and in what a user counts."""
    height, width = grid.rows * grid.pixels_per_row, grid.columns * grid.pixels_per_column
    return (
        f"T × rows × columns = {grid.frames} × {grid.rows} × {grid.columns} tokens "
        f"({grid.video_frames(grid.frames)} frames of {height} × {width} pixels)"
    )
