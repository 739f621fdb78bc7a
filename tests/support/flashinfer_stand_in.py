"""FlashInfer's batch prefill over pages, as it is documented, in plain PyTorch.

Signatures as in flashinfer-python 0.6.18, whose parameters 0.7.2 still has; a test compares them
with the package's own. What the documentation leaves open is an error here:
requests without keys, pages that leave the buffer, strides that a kernel does not take.
"""

import math

import torch
from torch import Tensor

__version__ = "0.6.18"

KERNELS = ("auto", "fa2", "fa3", "cudnn", "trtllm-gen", "cute-dsl")


class BatchPrefillWithPagedKVCacheWrapper:
    """Attention of many requests, each over pages of one buffer."""

    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        qo_indptr_buf=None,
        paged_kv_indptr_buf=None,
        paged_kv_indices_buf=None,
        paged_kv_last_page_len_buf=None,
        custom_mask_buf=None,
        mask_indptr_buf=None,
        backend="auto",
        jit_args=None,
        jit_kwargs=None,
    ):
        assert float_workspace_buffer.dtype == torch.uint8
        assert float_workspace_buffer.data_ptr() % 16 == 0
        assert kv_layout == "NHD"
        assert backend in KERNELS
        self.kernel = backend
        self.workspace = float_workspace_buffer
        self.runs = 0

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        head_dim_vo=None,
        custom_mask=None,
        packed_custom_mask=None,
        causal=False,
        pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        rope_scale=None,
        rope_theta=None,
        q_data_type="float16",
        kv_data_type=None,
        o_data_type=None,
        non_blocking=True,
        prefix_len_ptr=None,
        token_pos_in_items_ptr=None,
        token_pos_in_items_len=0,
        max_item_len_ptr=None,
        seq_lens=None,
        seq_lens_q=None,
        block_tables=None,
        max_token_per_sequence=None,
        max_sequence_kv=None,
        fixed_split_size=None,
        disable_split_kv=False,
    ):
        requests = len(qo_indptr) - 1
        for table in (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len):
            assert table.dtype == torch.int32
            assert table.dim() == 1
        assert qo_indptr[0] == paged_kv_indptr[0] == 0
        assert (qo_indptr.diff() > 0).all()
        assert (paged_kv_indptr.diff() > 0).all(), "requests without keys are not documented"
        assert len(paged_kv_indptr) == requests + 1
        assert len(paged_kv_last_page_len) == requests
        assert len(paged_kv_indices) == paged_kv_indptr[-1]
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        assert num_qo_heads == num_kv_heads
        assert not causal
        if self.kernel in ("fa2", "fa3"):
            assert head_dim_qk in (64, 128, 256)
        if self.kernel == "cute-dsl":
            assert page_size >= 8
            assert 128 % page_size == 0
            assert head_dim_qk % 16 == 0
        self.page = page_size
        self.queries = qo_indptr.tolist()
        self.starts = paged_kv_indptr.tolist()
        self.pages = paged_kv_indices.long()
        self.last = paged_kv_last_page_len.tolist()
        self.shape = num_qo_heads, head_dim_qk
        self.scale = 1 / math.sqrt(head_dim_qk) if sm_scale is None else sm_scale
        self.q_dtype = q_data_type
        self.kv_dtype = q_data_type if kv_data_type is None else kv_data_type
        self.o_dtype = q_data_type if o_data_type is None else o_data_type

    def run(
        self,
        q,
        paged_kv_cache,
        *args,
        q_scale=None,
        k_scale=None,
        v_scale=None,
        out=None,
        lse=None,
        return_lse=False,
        enable_pdl=None,
        window_left=None,
        sinks=None,
    ):
        assert not args
        k_cache, v_cache = paged_kv_cache
        assert q.shape == (self.queries[-1], *self.shape)
        assert q.dtype == self.q_dtype
        for cache in (k_cache, v_cache):
            assert cache.dtype == self.kv_dtype
            assert cache.shape[1:] == (self.page, *self.shape)
            assert cache.stride(-1) == 1
        if self.kernel == "fa3":
            assert k_cache.stride() == v_cache.stride()
        if self.kernel == "cute-dsl":
            assert q.is_contiguous()
        out = q.new_empty(q.shape, dtype=self.o_dtype) if out is None else out
        lse = q.new_empty(q.shape[:2], dtype=torch.float32) if lse is None else lse
        assert (out.shape, out.dtype, out.is_contiguous()) == (q.shape, self.o_dtype, True)
        assert (lse.shape, lse.dtype, lse.is_contiguous()) == (q.shape[:2], torch.float32, True)
        for i, last in enumerate(self.last):
            rows = slice(self.queries[i], self.queries[i + 1])
            pages = self.pages[self.starts[i] : self.starts[i + 1]]
            tokens = len(pages) * self.page - self.page + last
            k, v = (x[pages].flatten(0, 1)[:tokens] for x in (k_cache, v_cache))
            out[rows], lse[rows] = self._attend(q[rows], k, v)
        self.runs += 1
        return (out, lse) if return_lse else out

    def _attend(self, q_LHD: Tensor, k_CHD: Tensor, v_CHD: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and the log-sum-exp to base 2."""
        q, k, v = (x.double().transpose(0, 1) for x in (q_LHD, k_CHD, v_CHD))
        scores = q @ k.transpose(1, 2) * self.scale
        out = scores.softmax(-1) @ v
        return out.transpose(0, 1), (scores.logsumexp(-1) / math.log(2)).t()
