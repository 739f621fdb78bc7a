"""What a pipeline encodes and draws before it denoises: kept, and given again.

A text encoder on another device, or with other threads, may return other bits. A generation that
goes on starts from the very embeddings, noise and conditions that it started from before.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lvsa.errors import CheckpointError
from lvsa.wrapping import wrap_method

Made = list[tuple[str, Any]]
"""Results by the name of the method, in the order of the calls."""

# Pixels of a whole video, scaled and cut: the same bits on every machine, and gigabytes of them.
MADE_AGAIN = ("preprocess_conditions", "prepare_masks")


@contextmanager
def encoded(pipe: Any, methods: Iterable[str], given: Made | None) -> Iterator[Made]:
    """Notes what methods of a pipeline return, or has them return what they did before.

    Args:
        pipe: the pipeline; what runs its methods on one rank for all comes after this.
        methods: names of methods; those that it lacks, or that need not be kept, are left out.
        given: results of an earlier run to return, in their order; None to run the methods.

    Yields:
        the list that results are appended to.

    Raises:
        CheckpointError: from a call that the earlier run did not make.
    """
    made: Made = []
    rest = iter([] if given is None else given)
    busy = False

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        # Pipelines and users read signatures: they must stay to be seen.
        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:
                # Called by another of these methods, whose result holds this one's.
                return method(*args, **kwargs)
            if given is not None:
                known, result = next(rest, (None, None))
                if known != name:
                    raise CheckpointError(
                        f"the checkpoint has no result of {name} in this place, but of "
                        f"{known or 'nothing more'}; --fresh begins anew"
                    )
                return result
            busy = True
            try:
                result = method(*args, **kwargs)
            finally:
                busy = False
            made.append((name, result))
            return result

        return noted

    with ExitStack() as stack:
        for name in methods:
            if name not in MADE_AGAIN and hasattr(pipe, name):
                stack.callback(wrap_method(pipe, name, noting(name, getattr(pipe, name))))
        yield made
