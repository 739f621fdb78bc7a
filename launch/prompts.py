"""Prompts that are longer than a text encoder takes: what is cut off is said.

Pipelines ask their tokenizers to truncate, and say nothing. Here the tokenizers of a pipeline
compare what they return with the whole text, wherever a pipeline calls them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SHOWN = 60
"""Characters of the cut text that the warning quotes."""


@contextmanager
def telling_truncation(pipe: Any) -> Iterator[None]:
    """Warns of text that the tokenizers of a pipeline cut off while the context lasts."""
    said: set[str] = set()
    changed = []
    try:
        for name, part in list(getattr(pipe, "components", {}).items()):
            if isinstance(part, PreTrainedTokenizerBase):
                own = type(part)
                # Python looks calls up on the class; tokenizers call themselves too.
                part.__class__ = _telling(own, name, said)
                changed.append((part, own))
        yield
    finally:
        for part, own in changed:
            part.__class__ = own


def _telling(own: Any, name: str, said: set[str]) -> Any:
    """A tokenizer class that says what it cuts, once for each text."""

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        result = own.__call__(self, text, *args, **kwargs)
        limit = kwargs.get("max_length") or self.model_max_length
        if kwargs.get("truncation") and text is not None:
            for one in [text] if isinstance(text, str) else text:
                if isinstance(one, str) and one not in said:
                    said.add(one)
                    _tell(self, own, name, one, limit, kwargs.get("add_special_tokens", True))
        return result

    return type(own.__name__, (own,), {"__call__": call, "__module__": own.__module__})


def _tell(tokenizer: Any, own: Any, name: str, text: str, limit: int, special: bool) -> None:
    """Warns where a text has more tokens than the limit."""
    whole = own.__call__(tokenizer, text, add_special_tokens=special, verbose=False)["input_ids"]
    if len(whole) <= limit:
        return
    kept = own.__call__(
        tokenizer, text, add_special_tokens=special, truncation=True, max_length=limit
    )["input_ids"]
    start = tokenizer.decode(kept, skip_special_tokens=True)
    rest = tokenizer.decode(whole, skip_special_tokens=True).removeprefix(start).strip()
    shown = rest if len(rest) <= SHOWN else rest[:SHOWN] + "…"
    logger.warning(
        "the prompt has %d tokens, and %s takes %d: the last %d are cut off, from “%s”",
        len(whole),
        name,
        limit,
        len(whole) - len(kept),
        shown,
    )
