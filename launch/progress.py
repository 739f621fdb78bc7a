"""What is said while something takes its time: a line after two seconds, with the time so far."""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from lvsa.wrapping import wrap_method

PATIENCE = 2.0
"""Seconds without a word."""
# Seconds between two words: on a terminal one line is written over, in a file each is one more.
LIVELY, CALM = 1.0, 30.0


@contextmanager
def progress(what: str, aloud: bool = True) -> Iterator[None]:
    """Shows that work goes on, once it has taken two seconds.

    Args:
        what: it is.
        aloud: on one rank of several.
    """
    over = threading.Event()
    pause = LIVELY if sys.stderr.isatty() else CALM

    def show() -> None:
        if over.wait(PATIENCE):
            return
        with tqdm(desc=what, bar_format="{desc}: {elapsed}") as line:
            while not over.wait(pause):
                line.refresh()

    shower = threading.Thread(target=show, daemon=True)
    if aloud:
        shower.start()
    try:
        yield
    finally:
        over.set()
        if aloud:
            shower.join()


@contextmanager
def showing_phases(pipe: Any, aloud: bool) -> Iterator[None]:
    """Shows what a pipeline does before and behind its denoising loop, which has its own bar."""
    with ExitStack() as undo:
        for owner, name, what in (
            (pipe, "encode_prompt", "encoding the prompt"),
            (pipe, "encode_image", "encoding the image"),
            (pipe, "prepare_latents", "preparing the latents"),
            (pipe.vae, "decode", "decoding"),
        ):
            if aloud and hasattr(owner, name):
                method = getattr(owner, name)
                undo.callback(wrap_method(owner, name, _shown(method, what)))
        yield


def _shown(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    # Pipelines read signatures.
    @functools.wraps(method)
    def shown(*args: Any, **kwargs: Any) -> Any:
        with progress(what):
            return method(*args, **kwargs)

    return shown
