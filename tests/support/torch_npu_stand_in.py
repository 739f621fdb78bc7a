"""The two attention operators of torch_npu, as they are documented, in plain PyTorch.

After Ascend/op-plugin, docs/context: torch_npu-npu_fused_infer_attention_score.md and
torch_npu-npu_fusion_attention.md. What they leave open or exclude is an error here.
"""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def npu_fused_infer_attention_score(
    query,
    key,
    value,
    *,
    pse_shift=None,
    atten_mask=None,
    actual_seq_lengths=None,
    actual_seq_lengths_kv=None,
    num_heads=1,
    scale=1.0,
    pre_tokens=2147483647,
    next_tokens=2147483647,
    input_layout="BSH",
    num_key_value_heads=0,
    sparse_mode=0,
    inner_precise=0,
    block_size=0,
    softmax_lse_flag=False,
):
    """Attention, and the natural log-sum-exp ``[B, N, S, 1]`` in float32."""
    scores = _scores(query, key, value, num_heads, input_layout, scale)
    assert num_key_value_heads in (0, num_heads)
    assert query.dtype in HALF
    assert query.shape[-1] % 16 == 0
    lse = scores.logsumexp(-1, keepdim=True).float() if softmax_lse_flag else torch.zeros(1)
    return _out(scores, value), lse


def npu_fusion_attention(
    query,
    key,
    value,
    head_num,
    input_layout,
    pse=None,
    padding_mask=None,
    atten_mask=None,
    scale=1.0,
    keep_prob=1.0,
    pre_tockens=2147483647,
    next_tockens=2147483647,
    inner_precise=0,
    prefix=None,
    actual_seq_qlen=None,
    actual_seq_kvlen=None,
    sparse_mode=0,
    gen_mask_parallel=True,
    sync=False,
):
    """Attention, the maximum of the scores and the sum of their exponentials, and four others.

    Maximum and sum are ``[B, N, S, 8]`` in float32, each figure eight times.
    """
    scores = _scores(query, key, value, head_num, input_layout, scale)
    assert query.dtype in (*HALF, torch.float32)
    assert keep_prob == 1
    most = scores.amax(-1, keepdim=True)
    total = (scores - most).exp().sum(-1, keepdim=True)
    eightfold = (x.float().expand(-1, -1, -1, 8).contiguous() for x in (most, total))
    return (_out(scores, value), *eightfold, torch.empty(0), 0, 0, 0)


def _scores(
    query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, scale: float
) -> Tensor:
    """``[B, N, Sq, Skv]`` in float64."""
    assert layout == "BSND"
    for x in (query, key, value):
        assert x.is_contiguous()
        assert x.dtype == query.dtype
        assert x.shape[2] == heads
    assert key.shape == value.shape
    assert key.shape[1] > 0, "without keys the log-sum-exp is not documented"
    q, k = (x.double().transpose(1, 2) for x in (query, key))
    return q @ k.transpose(2, 3) * scale


def _out(scores: Tensor, value: Tensor) -> Tensor:
    out = scores.softmax(-1) @ value.double().transpose(1, 2)
    return out.transpose(1, 2).contiguous().to(value.dtype)
