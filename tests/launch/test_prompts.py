"""Prompts beyond a text encoder's length, in the pipelines of every family."""

import logging

import pytest
import torch

from lvsa.launch.prompts import telling_truncation
from tests.support.tiny import wan_pipeline
from tests.support.tiny_cogvideox import cogvideox_pipeline
from tests.support.tiny_hunyuan import hunyuan_pipeline

FAMILIES = {
    "wan": wan_pipeline,
    "hunyuan15": hunyuan_pipeline,
    "cogvideox": lambda: cogvideox_pipeline("2b"),
}


def warnings_of(family, prompt, caplog):
    pipe = FAMILIES[family]()
    own = type(pipe.tokenizer)
    with caplog.at_level(logging.WARNING, "lvsa"), telling_truncation(pipe), torch.no_grad():
        pipe.encode_prompt(prompt, device="cpu")
    assert type(pipe.tokenizer) is own
    return [record.args for record in caplog.records if record.name == "lvsa.launch.prompts"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_is_cut_is_said_once_with_its_numbers(family, caplog):
    words = [f"word{i}" for i in range(400)]
    (said,) = warnings_of(family, " ".join(words), caplog)
    tokens, name, limit, cut, rest = said
    assert name == "tokenizer" and tokens > limit and cut >= tokens - limit
    assert any(word in rest for word in words), "the cut text is quoted"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_fits_is_not_mentioned(family, caplog):
    assert warnings_of(family, "a red circle", caplog) == []


def test_the_tokenizers_are_given_back_after_an_error():
    pipe = wan_pipeline()
    own = type(pipe.tokenizer)
    with pytest.raises(ZeroDivisionError), telling_truncation(pipe):
        assert type(pipe.tokenizer) is not own
        raise ZeroDivisionError
    assert type(pipe.tokenizer) is own
