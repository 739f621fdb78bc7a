"""Rotation against complex multiplication, with every rank's offset."""

import pytest
import torch

from lvsa.errors import SequenceError
from lvsa.rope import apply_rotary_1d, apply_rotary_3d_cos_sin, local_rows, rotate_interleaved
from tests.support.errors import refuses

B, H, D = 2, 3, 12


def angles(S):
    """[S, D/2] angle of each position and pair."""
    frequency = 1.0 / 100 ** (torch.arange(D // 2, dtype=torch.float64) / (D // 2))
    return torch.arange(S, dtype=torch.float64)[:, None] * frequency


def turned(x, angle):
    """Pairs as complex numbers, turned by ``angle`` [L, D/2]."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
    return torch.view_as_real(pairs * turn).flatten(-2)


def draw(L, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, L, H, D, generator=generator, dtype=torch.float64).to(dtype)


def table_1d(angle, dtype):
    doubled = angle.repeat_interleave(2, dim=1)[None, :, None].to(dtype)
    return doubled.cos(), doubled.sin()


def table_3d(angle, dtype):
    doubled = angle.repeat_interleave(2, dim=1).to(dtype)
    return doubled.cos(), doubled.sin()


HELPERS = {"1d": (apply_rotary_1d, table_1d), "3d": (apply_rotary_3d_cos_sin, table_3d)}


@pytest.mark.parametrize("cut", [False, True], ids=["whole table", "cut table"])
@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_rank_rotates_by_its_own_positions(world, helper, cut):
    apply, table = HELPERS[helper]
    dtype, tolerance = (torch.float64, 1e-14) if helper == "1d" else (torch.float32, 1e-5)
    L = 5
    angle = angles(world * L)
    for rank in range(world):
        q, k = draw(L, rank, dtype), draw(L, rank + 100, dtype)
        mine = angle[rank * L : (rank + 1) * L]
        given = table(mine if cut else angle, dtype)
        got = apply(q, k, given, L, rank, world)
        for x, rotated in zip((q, k), got, strict=True):
            assert rotated.dtype == x.dtype
            torch.testing.assert_close(
                rotated.double(), turned(x, mine), rtol=tolerance, atol=tolerance
            )
    if world > 1:  # the last rank, with the positions of the first: the test sees the difference
        assert (got[0].double() - turned(q, angle[:L])).abs().max() > 0.1


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("length", [0, 4, 6, 14, 16, 30])
def test_a_table_of_any_other_length_is_an_error(helper, length):
    apply, table = HELPERS[helper]
    q = draw(5, 0, torch.float32)
    # What it has, which rank of how many holds what, and both lengths that it may have.
    with refuses(SequenceError, length, 1, 3, 5, 15):
        apply(q, q, table(angles(length), torch.float32), 5, 1, 3)


def test_local_rows_are_views():
    table = torch.arange(24.0).reshape(2, 12)
    rows = local_rows(table, 1, 4, 2, 3)
    assert torch.equal(rows, table[:, 8:])
    assert rows.data_ptr() == table[:, 8:].data_ptr()
    assert local_rows(rows, 1, 4, 2, 3) is rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_3d_table_is_applied_in_float32_and_cast_back(dtype):
    q = draw(6, 0, dtype)
    cos, sin = table_3d(angles(6), torch.float32)
    got, _ = apply_rotary_3d_cos_sin(q, q, (cos, sin), 6, 0, 1)
    assert got.dtype == dtype
    expected, _ = apply_rotary_3d_cos_sin(q.float(), q.float(), (cos, sin), 6, 0, 1)
    assert torch.equal(got, expected.to(dtype))


def test_rotation_keeps_lengths_and_turns_back():
    x, angle = draw(7, 0, torch.float64), angles(7)[None, :, None]
    there = rotate_interleaved(x, angle.cos(), angle.sin())
    torch.testing.assert_close(there.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate_interleaved(there, angle.cos(), -angle.sin()), x)


def test_equals_the_rotation_of_diffusers():
    from diffusers.models.embeddings import apply_rotary_emb

    q = draw(6, 0, torch.float32)
    table = table_3d(angles(6), torch.float32)
    got, _ = apply_rotary_3d_cos_sin(q, q, table, 6, 0, 1)
    expected = apply_rotary_emb(q.transpose(1, 2), table).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
