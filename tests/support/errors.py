"""Errors that tests expect: their type and the values that they name, whatever the wording."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Number

import pytest


def names(message: str, value: object) -> bool:
    """Whether a message names a value; a number as a whole, so that 1 is not found in 21 or −1."""
    if not isinstance(value, Number) or isinstance(value, bool):
        return str(value) in message
    written = {str(value), f"{value:,}"}
    return any(
        re.search(rf"(?<![\w.,-]){re.escape(text)}(?!\w|[.,]\d)", message) for text in written
    )


@contextmanager
def refuses(
    error: type[BaseException], *values: object
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Fails unless its block raises ``error`` with a message that names all of ``values``.

    Args:
        error: type of the error, or a base of it.
        values: what was given, what is allowed, what would work: numbers, names, settings.

    Yields:
        what `pytest.raises` does, for whoever wants to look further.
    """
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    missing = [value for value in values if not names(message, value)]
    assert not missing, f"{error.__name__} does not name {missing}: {message}"
