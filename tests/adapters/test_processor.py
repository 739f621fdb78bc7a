"""The processor: what it refuses to drop, and the optional part of an adapter, cross-attention.

Wan's cross-attention serves as the example: text, and text with image embeddings before it.
"""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import _get_added_kv_projections

from lvsa.adapters.base import CrossAttentionAdapter, split_heads
from lvsa.adapters.wan import WanAdapter
from lvsa.attention import LVSAttention
from lvsa.errors import LVSAError
from lvsa.pattern import dense
from lvsa.processor import LVSAProcessor
from lvsa.shards import FrameGrid
from tests.support.errors import refuses
from tests.support.tiny import wan_transformer

GRID = FrameGrid(12, 2, 3)
TEXT_TOKENS, IMAGE_TOKENS = 512, 5


class TextAdapter(CrossAttentionAdapter, WanAdapter):
    """Wan with text by cross-attention."""

    def extract_cross_attn_kv(self, attn, encoder):
        return split_heads(attn, attn.norm_k(attn.to_k(encoder))), split_heads(
            attn, attn.to_v(encoder)
        )


class TextAndImageAdapter(TextAdapter):
    """Wan's image-to-video kind."""

    def split_encoder_for_cross_attn(self, attn, encoder):
        return encoder[:, :-TEXT_TOKENS], encoder[:, -TEXT_TOKENS:]

    def extract_image_kv(self, attn, encoder_image):
        k, v = _get_added_kv_projections(attn, encoder_image)
        return split_heads(attn, attn.norm_added_k(k)), split_heads(attn, v)


def module_and_inputs(image):
    torch.manual_seed(0)
    config = {"image_dim": 8, "added_kv_proj_dim": 24} if image else {}
    attn = wan_transformer(**config).blocks[0].attn2.eval()
    encoder = torch.randn(2, TEXT_TOKENS + (IMAGE_TOKENS if image else 0), 24)
    return attn, torch.randn(2, GRID.tokens, 24), encoder


def install(attn, adapter):
    attn.set_processor(LVSAProcessor(adapter, LVSAttention(dense(GRID.frames), GRID)))


@pytest.mark.parametrize(("adapter", "image"), [(TextAdapter, False), (TextAndImageAdapter, True)])
@torch.no_grad()
def test_equals_the_models_own(adapter, image):
    attn, hidden, encoder = module_and_inputs(image)
    stock = attn(hidden, encoder)
    install(attn, adapter())
    torch.testing.assert_close(attn(hidden, encoder), stock, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_masks_are_not_dropped():
    attn, hidden, encoder = module_and_inputs(image=False)
    install(attn, TextAdapter())
    for encoder_states, words in ((encoder, "in cross-attention"), (None, "over video tokens")):
        with refuses(LVSAError, "LVSAProcessor", words):
            attn(hidden, encoder_states, torch.ones(2, TEXT_TOKENS, dtype=torch.bool))


@torch.no_grad()
def test_arguments_that_are_not_known_are_not_dropped():
    attn, hidden, _ = module_and_inputs(image=False)
    install(attn, TextAdapter())
    with refuses(TypeError, "LVSAProcessor", "dropout"):
        attn.processor(attn, hidden, dropout=0.5)


@torch.no_grad()
def test_an_adapter_without_the_part_refuses_cross_attention():
    attn, hidden, encoder = module_and_inputs(image=False)
    install(attn, WanAdapter())
    with refuses(LVSAError, "WanAdapter", "WanAttention", "CrossAttentionAdapter"):
        attn(hidden, encoder)


@torch.no_grad()
def test_an_adapter_without_image_attention_says_so():
    attn, _, encoder = module_and_inputs(image=False)
    with refuses(LVSAError, "TextAdapter"):
        TextAdapter().extract_image_kv(attn, encoder)
