"""Names of videos: readable in any script, and never the same for two videos of a list."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from lvsa.launch.config import GenerateConfig
from lvsa.launch.requests.lists import ListError, Request, bare

WORDS = 48
"""Characters of a prompt that a name shows."""
DIGITS = 6
"""Hexadecimal digits that tell two names apart."""


def default_name(config: GenerateConfig) -> str:
    """A file name of prompt and seed; with a digest where it cannot show the whole prompt.

    A dense video says so, as it is made to be held against one with LVSA.
    """
    prompt = unicodedata.normalize("NFC", config.video.prompt or "")
    # Letters, numbers and the marks that belong to them, as Hindi and Thai write vowels.
    shown = [c if unicodedata.category(c)[0] in "LNM" else " " for c in prompt.lower()]
    words = re.sub(r"\s+", "-", "".join(shown).strip())
    short = words
    if len(words) > WORDS:
        cut = words[: WORDS + 1].rpartition("-")[0] or words[:WORDS]
        short = f"{cut}-{_digest(prompt)}"
    elif not words:
        short = f"video-{_digest(prompt)}" if prompt.strip() else "video"
    return f"{short}-{config.sampling.seed}" + ("" if config.attention.lvsa else "-dense")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _key(name: str) -> str:
    """What file systems that ignore case or composition take a name for."""
    return unicodedata.normalize("NFC", bare(name)).casefold()


def named(requests: Sequence[Request]) -> list[Request]:
    """The requests with a name each, no two of which any file system takes for one.

    Of default names that are alike the later ones get a digest of their settings, so that a list
    may grow at its end without a name changing.

    Raises:
        ListError: where two requests are the same, or give the same name.
    """
    problems: dict[str, str] = {}
    taken: dict[str, Request] = {}
    asked: dict[str, Request] = {}
    done = []
    # Names that users give go first: others make way for them.
    names = (request.config.output.output_name for request in requests)
    given = {_key(name) for name in names if name is not None}
    for request in requests:
        config = request.config
        settings = json.dumps({**config.as_dict(), "output_name": None}, sort_keys=True)
        name = config.output.output_name
        if name is None:
            name = default_name(config)
            if _key(name) in given | taken.keys():
                name = f"{name}-{_digest(settings)}"
        same = asked.setdefault(settings, request)
        other = taken.setdefault(_key(name), request)
        if same is not request:
            problems[request.where] = f"asks for the same video as {same.where}"
        elif other is not request:
            problems[request.where] = f"has the name {name!r}, as {other.where} has"
        output = replace(config.output, output_name=name)
        done.append(replace(request, config=replace(config, output=output)))
    if problems:
        raise ListError.of(problems)
    return done
