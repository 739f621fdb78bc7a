"""The sequence that an attention of the engine works on: where its video, text and padding stand.

Positions are those of the keys, which are always whole: ``[before | video | padding | text]``.
Padding is what sequence parallelism adds for the tokens to divide. Queries may be a rank's share,
in ranges. Nothing here knows the engine's classes; it reads their attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lvsa.errors import SequenceError
from lvsa.shards import FrameGrid, TokenRange


@dataclass(frozen=True)
class TokenSequence:
    """Keys of one attention.

    Args:
        grid: of the video.
        video: where it stands.
        text: ranges of tokens that all attend, and that attend all; empty in most models.
        tokens: number of keys; those in no range are padding.
    """

    grid: FrameGrid
    video: TokenRange
    text: tuple[TokenRange, ...]
    tokens: int


class QueryRun(NamedTuple):
    """Queries [start, stop) of those that are here, from position ``first`` of the keys on."""

    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Queries:
    """Queries by what they are. Rows in no run are padding.

    Args:
        video: runs of video tokens; ``first`` counts from the video's first token.
        text: runs of text tokens.
        rows: how many there are.
    """

    video: tuple[QueryRun, ...]
    text: tuple[QueryRun, ...]
    rows: int


def sequence_of_layout(layout: Any, tokens: int) -> TokenSequence:
    """The sequence that a model describes in its ``VideoTokenLayout``; nothing follows the video.

    Raises:
        SequenceError: for a layout of several videos, or one that does not fit the keys.
    """
    if layout.video_spans or layout.latent_grid is None:
        raise SequenceError(
            f"LVSA attends one video; this sequence holds {len(layout.video_spans)} spans of video"
        )
    grid, before = FrameGrid(*layout.latent_grid), layout.prefix_len or 0
    stop = before + grid.tokens
    if stop > tokens or layout.used_len not in (None, stop):
        raise SequenceError(
            f"{tokens} keys of which {layout.used_len} are in use hold no {before} tokens and a "
            f"video of {' × '.join(map(str, layout.latent_grid))} = {grid.tokens} behind them"
        )
    text = ((0, before),) if before else ()
    return TokenSequence(grid, (before, stop), text, tokens)


def sequence_with_text(grid: FrameGrid, tokens: int, text_tokens: int | None) -> TokenSequence:
    """A video and the text behind it.

    Args:
        grid: of the video.
        tokens: number of keys.
        text_tokens: how many of them are text, at the end; None for all behind the video.

    Raises:
        SequenceError: where that is more than there are keys.
    """
    text = tokens - grid.tokens if text_tokens is None else text_tokens
    if text < 0 or grid.tokens + text > tokens:
        raise SequenceError(
            f"a video of {grid.frames} × {grid.rows} × {grid.columns} = {grid.tokens} tokens and "
            f"{max(text, 0)} of text are more than the {tokens} keys"
        )
    return TokenSequence(grid, (0, grid.tokens), ((tokens - text, tokens),) if text else (), tokens)


def split_queries(
    sequence: TokenSequence, rows: int, ranges: Sequence[Any] | None = None
) -> Queries:
    """The queries by what they are.

    Args:
        sequence: the keys.
        rows: number of queries.
        ranges: the engine's ``QueryRange``, where they are a share of the sequence; without any
            they are all of it.

    Raises:
        SequenceError: where the queries are a share of the sequence and nothing says which.
    """
    if not ranges:
        if rows != sequence.tokens:
            raise SequenceError(
                f"{rows} queries for {sequence.tokens} keys, and no ranges that say which they are"
            )
        runs = [QueryRun(0, rows, 0)]
    else:
        runs = [QueryRun(r.local_start, r.local_end, r.global_start) for r in ranges]
    start = sequence.video[0]
    video = [QueryRun(a, b, first - start) for a, b, first in _within(runs, sequence.video)]
    text = [run for words in sequence.text for run in _within(runs, words)]
    return Queries(tuple(video), tuple(text), rows)


def _within(runs: Sequence[QueryRun], bounds: TokenRange) -> list[QueryRun]:
    """The parts of runs whose positions lie in these bounds."""
    parts = []
    for start, stop, first in runs:
        low, high = max(first, bounds[0]), min(first + stop - start, bounds[1])
        if low < high:
            parts.append(QueryRun(start + low - first, start + high - first, low))
    return parts


def text_mask(sequence: TokenSequence, metadata: Any) -> Tensor | None:
    """``[B, X]``: which tokens of the text may be attended; None for all.

    Raises:
        SequenceError: for a mask that is not one of keys.
    """
    if metadata is None or not sequence.text:
        return None
    mask, joint = metadata.attn_mask, metadata.joint_attn_mask
    start, stop = sequence.text[-1]
    for found, shape in ((mask, sequence.tokens), (joint, stop - start)):
        if found is not None and found.ndim == 2 and found.shape[1] == shape:
            return found[:, start:stop] if found is mask else found
    for found in (mask, joint):
        if found is not None and found.ndim != 2:
            raise SequenceError(
                f"a mask of {tuple(found.shape)}: LVSA takes masks of text tokens alone, [B, keys]"
            )
    return None
