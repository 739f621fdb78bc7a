"""Text for training: what `WanPipeline` gives the transformer, without some 500 blank rows.

The pipeline fills the text up to 512 rows with zeros and masks none of them. The blank rows
have the same key and the same value, so one blank row whose logit is raised by the logarithm of
their number takes their place exactly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

ROWS = 512
"""Rows of text that `WanPipeline` passes by default."""


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both ``[B, L]``, padded to the longest caption."""
    found = tokenizer(list(captions), padding="longest", return_tensors="pt")
    return found.input_ids, found.attention_mask


def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text rows ``[B, L + 1, D]``, the last one blank, and the bias ``[B, 1, 1, L + 1]`` of their
    logits."""
    rows = encoder(ids, mask).last_hidden_state * mask[..., None]
    rows = F.pad(rows, (0, 0, 0, 1))
    bias = torch.zeros(ids.shape[0], ids.shape[1] + 1, device=ids.device)
    bias[:, :-1].masked_fill_(mask == 0, -math.inf)
    bias[:, -1] = (ROWS - mask.sum(dim=1)).float().log()
    return rows, bias[:, None, None]
