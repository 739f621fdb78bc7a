"""LVSA over whole keys: all queries, a rank's share of them, with text and padding, any grid."""

import pytest
import torch

from lvsa.errors import LVSAError
from lvsa.serving.vllm_omni import attention as module
from lvsa.serving.vllm_omni.attention import GridAttention
from lvsa.serving.vllm_omni.checkpoint import served_model
from lvsa.serving.vllm_omni.options import read_options
from lvsa.serving.vllm_omni.sequence import (
    Queries,
    QueryRun,
    sequence_with_text,
    split_queries,
)
from lvsa.shards import FrameGrid
from tests.serving.support.masks import token_mask
from tests.support.errors import refuses
from tests.support.oracle import masked_attention, relative_error

MODEL = served_model("assets/tiny-wan")
GRID = FrameGrid(40, 1, 3)
X, PAD = 5, 2


def grid_attention(**options):
    return GridAttention(MODEL, read_options({"rotate_keyframes": True, **options}))


def tensors(tokens, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, tokens, 2, 8, generator=generator)


def expected(attend, q, k, v, step, text=0, valid=None):
    """Dense attention under the mask of the definition, of keys without padding."""
    S = GRID.tokens
    mask = torch.ones(q.shape[0], S + text, S + text, dtype=torch.bool)
    mask[:, :S, :S] = token_mask(attend.pattern(GRID.frames), step, 3)
    if valid is not None:
        mask[:, :, S:] = valid[:, None]
    return masked_attention(q, k, v, mask)


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_video_alone(step):
    attend = grid_attention()
    q, k, v = tensors(GRID.tokens)
    sequence = sequence_with_text(GRID, GRID.tokens, None)
    out = attend(q, k, v, sequence, split_queries(sequence, GRID.tokens), step)
    assert relative_error(out, expected(attend, q, k, v, step)) < 1e-5
    assert not attend.pattern(GRID.frames).is_dense


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_ranks_share_is_its_rows_of_the_whole(world):
    """Padding between video and text, as on ranks that do not divide, must not show."""
    attend = grid_attention()
    S = GRID.tokens
    q, k, v = tensors(S + X)
    whole = expected(attend, q, k, v, 2, text=X)
    padded = -(-(S + PAD) // world) * world
    wide = [
        torch.cat([x[:, :S], 9 * torch.ones(1, padded - S, 2, 8), x[:, S:]], 1) for x in (q, k, v)
    ]
    sequence = sequence_with_text(GRID, padded + X, X)
    share = padded // world
    for rank in range(world):
        rows = [*range(rank * share, (rank + 1) * share), *range(padded, padded + X)]
        video = min(S, (rank + 1) * share) - rank * share
        queries = Queries(
            (QueryRun(0, video, rank * share),), (QueryRun(share, share + X, padded),), len(rows)
        )
        out = attend(wide[0][:, rows], *wide[1:], sequence, queries, 2)
        assert relative_error(out[:, :video], whole[:, rank * share : rank * share + video]) < 1e-5
        assert relative_error(out[:, share:], whole[:, S:]) < 1e-5
        assert not out[:, video:share].any()


def test_masked_text_is_attended_by_nobody():
    attend = grid_attention()
    S = GRID.tokens
    q, k, v = tensors(S + X, batch=2)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    sequence = sequence_with_text(GRID, S + X, None)
    out = attend(q, k, v, sequence, split_queries(sequence, S + X), 0, mask_BX=valid)
    assert relative_error(out, expected(attend, q, k, v, 0, X, valid)) < 1e-5


def test_the_scale_is_the_layers():
    attend = grid_attention(sparsity_scale=100.0)
    q, k, v = tensors(GRID.tokens)
    sequence = sequence_with_text(GRID, GRID.tokens, None)
    out = attend(q, k, v, sequence, split_queries(sequence, GRID.tokens), 0, scale=0.1)
    assert relative_error(out, masked_attention(q, k, v, scale=0.1)) < 1e-5


def test_at_the_horizon_attention_is_dense_and_beyond_it_is_not():
    attend = grid_attention()
    assert attend.pattern(MODEL.horizon).is_dense
    assert attend.pattern(1).is_dense
    assert not attend.pattern(MODEL.horizon + 1).is_dense


def test_keyframes_move_with_the_step_and_come_round():
    attend = grid_attention()
    offsets = [attend.offset(GRID, step) for step in range(7)]
    n = attend.pattern(GRID.frames).n_offsets
    assert n > 1
    assert offsets == [step % n for step in range(7)]


def test_rotating_keyframes_need_a_step_and_others_do_not():
    attend = grid_attention()
    with refuses(LVSAError, "WanPipeline", "rotate_keyframes"):
        attend.offset(GRID, None)
    assert attend.offset(FrameGrid(5, 1, 3), None) == 0
    assert grid_attention(rotate_keyframes=False).offset(GRID, None) == 0


def test_tables_are_made_once_for_each_grid_and_offset_and_are_bounded():
    attend = grid_attention()
    device = torch.device("cpu")
    first = attend.layout(GRID, (0, GRID.tokens), 0, device)
    assert attend.layout(FrameGrid(40, 1, 3), (0, GRID.tokens), 0, device) is first
    assert attend.layout(GRID, (0, GRID.tokens), 1, device) is not first
    for columns in range(1, module.LAYOUTS_KEPT + 40):
        attend.layout(FrameGrid(22, 1, columns), (0, 22), 0, device)
    assert attend.layout.cache_info().currsize == module.LAYOUTS_KEPT
    for frames in range(1, module.PATTERNS_KEPT + 8):
        attend.pattern(frames)
    assert attend.pattern.cache_info().currsize == module.PATTERNS_KEPT


def test_conditioning_frames_count_where_a_video_has_them():
    attend = grid_attention(condition_latent_frames=[30], rotate_keyframes=False)
    assert attend.pattern(40).anchors[0, 30]
    assert attend.pattern(25).frames == 25


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window_size": -1}, ("window size", -1, 0)),
        ({"window_size": 2}, ("window size", 2, 4)),
        ({"sparsity_scale": 0.0}, ("sparsity scale", 0.0)),
        ({"horizon": 0}, ("horizon", 0, 1)),
        ({"condition_latent_frames": [-1]}, (-1,)),
    ],
)
def test_options_out_of_range_stop_before_the_first_request(options, named):
    with refuses(LVSAError, *named):
        grid_attention(**options)
