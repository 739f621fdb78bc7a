"""The kernel of the Triton backend: flash attention of strips of queries over listed keys.

One program computes one strip of one head: a run of queries that attend the same keys. Which keys
these are stands in the tables of `lvsa.strips.Strips`; the kernel reads them where they lie in the
block, first by whole blocks of consecutive tokens, then what is left of all the strip's ranges,
token by token from a list. Only the last block of that list is masked.

The running result is where the online softmax begins, so that merging costs no pass of its own.

Online softmax: Milakov and Gimelshein 2018 (arXiv 1805.02867); in tiles: Dao et al. 2022 (arXiv
2205.14135).
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _attend_keys(
    acc, total, peak, q, k_rows, v_rows, loaded, valid, scale_log2,
    MASKED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, in base 2.

    Args:
        acc, total, peak: weighted values, sum of weights and largest score so far.
        q: queries, zero beyond D.
        k_rows, v_rows: pointers to keys and values.
        loaded: which of them to load, with MASKED or PADDED; the others are zero.
        valid: keys that count, at least one, with MASKED.
    """
    if MASKED or PADDED:
        k, v = tl.load(k_rows, loaded, 0.0), tl.load(v_rows, loaded, 0.0)
    else:
        k, v = tl.load(k_rows), tl.load(v_rows)
    if WIDEN:
        q, k = q.to(tl.float32), k.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(valid[None, :], scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - higher[:, None])
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(v.dtype)
    if WIDEN:
        weights, v = weights.to(tl.float32), v.to(tl.float32)
    acc = tl.dot(weights, v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, higher


# Lengths and strides of lengths: one kernel serves them all, however they divide.
@triton.jit(do_not_specialize=["n_queries", "n_keys", "e_b", "e_h", "e_l"])
def attend_strips(
    q, k, v, out, lse, state_out, state_lse, strips, whole_blocks, other_keys,
    q_b, q_l, q_h, k_b, k_c, k_h, v_b, v_c, v_h, s_b, s_l, s_h, e_b, e_h, e_l,
    n_queries, n_keys, scale_log2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    STRIP_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    TABLES: tl.constexpr, STATE: tl.constexpr, IN_PLACE: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Attention of one strip of one head; a program for each strip, head and batch element.

    Args:
        q, k, v: [B, L or C, H, D], the last dimension contiguous; strides q_b of the batch, q_l
            of the tokens, q_h of the heads, and so on.
        out, lse: contiguous [B, L, H, D] and [B, H, L].
        state_out, state_lse: the running result, with STATE; strides s and e.
        strips, whole_blocks, other_keys: tables of `Strips`, with TABLES; without, every query
            attends all n_keys keys.
        scale_log2: scale of the scores, times log2(e).
        ROWS, KEYS: the shape that is computed at a time; ROWS divides STRIP_ROWS and KEYS divides
            BLOCK_KEYS, which the tables were made with.
        IN_PLACE: whether out and lse are the running result.
        PRECISION: how float32 is multiplied, `input_precision` of tl.dot.
        WIDEN: whether bfloat16 is multiplied as float32: Triton's interpreter multiplies its bits.
    """
    b, h, H = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if TABLES:
        parts: tl.constexpr = STRIP_ROWS // ROWS
        strip = strips + tl.program_id(0) // parts * 6
        first = tl.load(strip) + tl.program_id(0) % parts * ROWS
        stop = tl.load(strip + 1)
        block_first, block_stop = tl.load(strip + 2), tl.load(strip + 3)
        other_first, other_stop = tl.load(strip + 4), tl.load(strip + 5)
    else:
        first, stop = tl.program_id(0) * ROWS, n_queries
        block_first, block_stop = 0, n_keys // BLOCK_KEYS
        other_first, other_stop = block_stop * BLOCK_KEYS, n_keys
    idle = first >= stop
    if IN_PLACE:
        idle |= (block_first == block_stop) & (other_first == other_stop)
    if idle:
        return

    rows = (first + tl.arange(0, ROWS)).to(tl.int64)
    channels = tl.arange(0, BLOCK_D)[None, :]
    inside, padded = rows < stop, channels < D
    here = inside[:, None] & padded
    queries = tl.load(q + b * q_b + h * q_h + rows[:, None] * q_l + channels, here, 0.0)
    if STATE:
        peak = tl.load(state_lse + b * e_b + h * e_h + rows * e_l, inside, float("-inf"))
        peak *= LOG2_E
        total = tl.where(peak == float("-inf"), 0.0, 1.0)
        acc = tl.load(state_out + b * s_b + h * s_h + rows[:, None] * s_l + channels, here, 0.0)
        acc = acc.to(tl.float32)
    else:
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)

    k_head, v_head = k + b * k_b + h * k_h + channels, v + b * v_b + h * v_h + channels
    near = tl.arange(0, KEYS)
    k_near, v_near = near[:, None] * k_c, near[:, None] * v_c
    steps: tl.constexpr = BLOCK_KEYS // KEYS
    # Which tokens come next is looked up a step ahead: a load of keys that waited for a load of
    # their place could not be prefetched.
    token = tl.load(whole_blocks + block_first, block_first < block_stop, 0) if TABLES else 0
    for step in tl.range(block_first * steps, block_stop * steps):
        k_at, v_at = tl.cast(token, tl.int64) * k_c, tl.cast(token, tl.int64) * v_c
        if TABLES:
            after = step + 1
            token = tl.load(whole_blocks + after // steps, after < block_stop * steps, 0)
            token += after % steps * KEYS
        else:
            token += KEYS
        acc, total, peak = _attend_keys(
            acc, total, peak, queries, k_head + k_at + k_near, v_head + v_at + v_near,
            padded, near, scale_log2, False, D < BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip
    listed = other_first + near
    tokens = tl.load(other_keys + listed, listed < other_stop, 0) if TABLES else listed
    for position in tl.range(other_first, other_stop, KEYS):
        listed = position + near
        valid = listed < other_stop
        k_at, v_at = tokens.to(tl.int64)[:, None] * k_c, tokens.to(tl.int64)[:, None] * v_c
        if TABLES:
            tokens = tl.load(other_keys + listed + KEYS, listed + KEYS < other_stop, 0)
        else:
            tokens = listed + KEYS
        acc, total, peak = _attend_keys(
            acc, total, peak, queries, k_head + k_at, v_head + v_at,
            valid[:, None] & padded, valid, scale_log2, True, D < BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip

    nothing = peak == float("-inf")
    total = tl.where(nothing, 1.0, total)
    acc = tl.where(nothing[:, None], 0.0, acc / total[:, None])
    out_head = out + (b * n_queries * H + h) * D + channels
    tl.store(out_head + rows[:, None] * (H * D), acc.to(out.dtype.element_ty), mask=here)
    natural = tl.where(nothing, float("-inf"), (peak + tl.log2(total)) * LN_2)
    tl.store(lse + (b * H + h) * n_queries + rows, natural, mask=inside)


INTERPRETED = isinstance(attend_strips, InterpretedFunction)
"""Whether Triton's interpreter runs the kernel: TRITON_INTERPRET=1 when this was imported."""
