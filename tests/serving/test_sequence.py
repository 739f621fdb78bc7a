"""What the tokens of an attention are: video, text, padding; all of them, or a rank's share."""

from types import SimpleNamespace

import pytest
import torch

from lvsa.errors import LVSAError, SequenceError
from lvsa.serving.vllm_omni.sequence import (
    QueryRun,
    sequence_of_layout,
    sequence_with_text,
    split_queries,
    text_mask,
)
from lvsa.shards import FrameGrid
from tests.support.errors import refuses

GRID = FrameGrid(5, 2, 3)


def layout(prefix=0, grid=(5, 2, 3), used=None, spans=()):
    return SimpleNamespace(prefix_len=prefix, latent_grid=grid, used_len=used, video_spans=spans)


def query_range(start, stop, first):
    return SimpleNamespace(local_start=start, local_end=stop, global_start=first)


def metadata(mask=None, joint=None):
    return SimpleNamespace(attn_mask=mask, joint_attn_mask=joint)


def test_a_layout_tells_the_video_and_leaves_padding_out():
    sequence = sequence_of_layout(layout(used=30), 32)
    assert (sequence.grid, sequence.video, sequence.text) == (GRID, (0, 30), ())
    queries = split_queries(sequence, 32)
    assert queries.video == (QueryRun(0, 30, 0),)
    assert queries.text == ()


def test_what_stands_before_the_video_is_attended_by_all():
    sequence = sequence_of_layout(layout(prefix=4, used=34), 36)
    assert (sequence.video, sequence.text) == ((4, 34), ((0, 4),))
    queries = split_queries(sequence, 36)
    assert queries.video == (QueryRun(4, 34, 0),)
    assert queries.text == (QueryRun(0, 4, 0),)


def test_text_stands_behind_padding():
    sequence = sequence_with_text(GRID, tokens=39, text_tokens=7)
    assert (sequence.video, sequence.text) == ((0, 30), ((32, 39),))
    queries = split_queries(sequence, 39)
    assert (queries.video, queries.text) == ((QueryRun(0, 30, 0),), (QueryRun(32, 39, 32),))


def test_without_word_of_padding_all_behind_the_video_is_text():
    assert sequence_with_text(GRID, 37, None).text == ((30, 37),)
    assert sequence_with_text(GRID, 30, None).text == ()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_ranks_queries_are_found_in_the_whole(rank):
    """30 tokens and 2 of padding on 2 ranks: 16 and 14, and 7 of text on both."""
    sequence = sequence_with_text(GRID, tokens=39, text_tokens=7)
    ranges = (query_range(0, 16, 16 * rank), query_range(16, 23, 32))
    queries = split_queries(sequence, 23, ranges)
    assert queries.video == (QueryRun(0, 16, 0) if rank == 0 else QueryRun(0, 14, 16),)
    assert queries.text == (QueryRun(16, 23, 32),)


def test_a_rank_of_padding_alone_has_no_queries():
    sequence = sequence_of_layout(layout(grid=(1, 1, 3), used=3), 8)
    assert split_queries(sequence, 4, (query_range(0, 4, 4),)).video == ()


def test_masks_of_text_are_found_where_the_engine_puts_them():
    sequence = sequence_with_text(GRID, tokens=37, text_tokens=7)
    mask = torch.ones(2, 37, dtype=torch.bool)
    mask[1, 34:] = False
    assert torch.equal(text_mask(sequence, metadata(mask)), mask[:, 30:])
    assert torch.equal(text_mask(sequence, metadata(joint=mask[:, 30:])), mask[:, 30:])
    padding_alone = torch.ones(2, 30, dtype=torch.bool)
    assert torch.equal(text_mask(sequence, metadata(padding_alone, mask[:, 30:])), mask[:, 30:])
    assert text_mask(sequence, metadata()) is None
    assert text_mask(sequence, None) is None


def test_a_mask_over_the_padding_of_a_video_is_not_needed():
    sequence = sequence_of_layout(layout(used=30), 32)
    assert text_mask(sequence, metadata(torch.ones(1, 32, dtype=torch.bool))) is None


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: sequence_of_layout(layout(used=30), 29), (29, 30, "5 × 2 × 3")),
        (lambda: sequence_of_layout(layout(used=31), 32), (32, 31, 30)),
        (lambda: sequence_of_layout(layout(prefix=4), 32), (32, 4, 30)),
        (lambda: sequence_of_layout(layout(grid=None, spans=(1, 2)), 32), (2,)),
        (lambda: sequence_with_text(GRID, 29, None), (29, 30)),
        (lambda: sequence_with_text(GRID, 34, 5), (34, 5, 30)),
        (lambda: split_queries(sequence_of_layout(layout(), 30), 15), (15, 30)),
        (
            lambda: text_mask(
                sequence_with_text(GRID, 37, 7), metadata(torch.ones(1, 1, 37, 37).bool())
            ),
            ("(1, 1, 37, 37)",),
        ),
        (lambda: sequence_of_layout(layout(grid=(5, 0, 3)), 30), (0, 1)),
    ],
)
def test_what_does_not_fit_is_refused(make, named):
    with refuses(LVSAError, *named) as caught:
        make()
    assert isinstance(caught.value, SequenceError) or 0 in named
