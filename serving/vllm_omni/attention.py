"""LVSA over the keys of one attention: whole keys, and all queries or a rank's share of them.

Shapes: B batch, L queries, K keys, X text tokens, H heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from lvsa.backends import Backend, get_backend
from lvsa.errors import LVSAError
from lvsa.layout import BlockLayout, Piece, build_layout
from lvsa.merge import AttentionState
from lvsa.pattern import Pattern
from lvsa.serving.vllm_omni.checkpoint import ServedModel
from lvsa.serving.vllm_omni.options import ServingOptions
from lvsa.serving.vllm_omni.reporting import say
from lvsa.serving.vllm_omni.sequence import Queries, TokenSequence
from lvsa.settings import joined
from lvsa.shards import FrameGrid, TokenRange
from lvsa.text import ValidText, attend_text, valid_positions, valid_text

PATTERNS_KEPT = 8
LAYOUTS_KEPT = 128
"""One for each keyframe offset of the last few grids."""


class GridAttention:
    """LVSA for videos of any grid, as one model and one user's options have it.

    Args:
        model: whose training horizon it is.
        options: what the user asked for.

    Raises:
        LVSAError: for an option out of range.
    """

    def __init__(self, model: ServedModel, options: ServingOptions) -> None:
        self.model, self.options = model, options
        # What is wrong with an option shows in a video that is long enough to need it.
        self._pattern(max(2 * model.horizon, 1 + max(options.condition_latent_frames, default=0)))
        self.pattern = lru_cache(PATTERNS_KEPT)(self._pattern)
        self.layout = lru_cache(LAYOUTS_KEPT)(self._layout)

    def __call__(
        self,
        q_BLHD: Tensor,
        k_BKHD: Tensor,
        v_BKHD: Tensor,
        sequence: TokenSequence,
        queries: Queries,
        step: int | None,
        scale: float | None = None,
        mask_BX: Tensor | None = None,
    ) -> Tensor:
        """Attention of these queries; zero for those that are padding.

        Args:
            q_BLHD, k_BKHD, v_BKHD: rotated.
            sequence: what the keys are.
            queries: what the queries are.
            step: the denoising step about to run, which keyframes move by; None if unknown.
            scale: of the scores; 1/sqrt(D) by default.
            mask_BX: which tokens of the text may be attended; None for all.

        Raises:
            LVSAError: where keyframes rotate and the step is not known.
        """
        backend = _backend(self.options.backend, q_BLHD.device)
        video = slice(*sequence.video)
        k_video, v_video = k_BKHD[:, video], v_BKHD[:, video]
        valid = None if mask_BX is None else valid_positions(mask_BX)
        # The mask is that of the last range of text.
        masks = [None] * (len(sequence.text) - 1) + [valid]
        texts = [
            valid_text(k_BKHD[:, a:b], v_BKHD[:, a:b], mask)
            for (a, b), mask in zip(sequence.text, masks, strict=False)
        ]
        parts: list[tuple[int, int, Tensor]] = []
        for start, stop, first in queries.video:
            q = q_BLHD[:, start:stop]
            share = (first, first + stop - start)
            layout = self.layout(sequence.grid, share, self.offset(sequence.grid, step), q.device)
            state = backend.attend(q, k_video, v_video, layout, scale, more=bool(texts))
            parts.append((start, stop, _attend_text(backend, q, texts, scale, state)))
        for start, stop, _ in queries.text:
            q = q_BLHD[:, start:stop]
            state = backend.attend_all(q, k_video, v_video, scale, more=True)
            parts.append((start, stop, _attend_text(backend, q, texts, scale, state)))
        if len(parts) == 1 and parts[0][:2] == (0, queries.rows):
            return parts[0][2].to(q_BLHD.dtype)
        out = torch.zeros_like(q_BLHD, memory_format=torch.contiguous_format)
        for start, stop, part in parts:
            out[:, start:stop] = part
        return out

    def offset(self, grid: FrameGrid, step: int | None) -> int:
        """The keyframe offset of a step."""
        pattern = self.pattern(grid.frames)
        if step is None and pattern.n_offsets > 1:
            raise LVSAError(
                f"keyframes rotate, and {self.model.name} does not say which denoising step runs: "
                "leave rotate_keyframes out, or add a hook for this model (docs/serving.md)"
            )
        return pattern.offset(step or 0)

    def _pattern(self, frames: int) -> Pattern:
        options = self.options
        beyond = [f for f in options.condition_latent_frames if f >= frames]
        if beyond:
            say(f"videos of {frames} latent frames have no conditioning frames {joined(beyond)}")
            kept = tuple(f for f in options.condition_latent_frames if f < frames)
            options = replace(options, condition_latent_frames=kept)
        return self.model.pattern(frames, options)

    def _layout(
        self, grid: FrameGrid, share: TokenRange, offset: int, device: torch.device
    ) -> BlockLayout:
        """What the video's tokens ``share`` attend of all of them, at one offset."""
        attended = self.pattern(grid.frames).attended[offset]
        pieces = [Piece(0, grid.tokens, 0)]
        return build_layout(share, pieces, attended, grid.tokens_per_frame).to(device)


@lru_cache
def _backend(name: str, device: torch.device) -> Backend:
    return get_backend(name, device)


def _attend_text(
    backend: Backend,
    q_BLHD: Tensor,
    texts: Sequence[Sequence[ValidText]],
    scale: float | None,
    state: AttentionState,
) -> Tensor:
    """``state`` with all ranges of text merged into it."""
    for left, words in zip(reversed(range(len(texts))), texts, strict=True):
        state = attend_text(backend, q_BLHD, words, scale, state, more=left > 0)
    return state.out_BLHD
