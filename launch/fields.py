"""Frozen dataclasses of plain settings, nested by subject: flattened, built and checked by field.

A field is a `str`, `bool`, `int`, `float`, `Path`, `Literal` or tuple of whole numbers or texts, or
one of these or None. Names are unique among all groups, so that they need no path.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from lvsa.errors import LVSAError
from lvsa.settings import flag

Group = TypeVar("Group")

DESCRIBED = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "the name of a file",
    list: "a list",
    dict: "a mapping",
}


class Range(NamedTuple):
    """Smallest and largest value of a field, as an annotation of its type."""

    low: float
    high: float


class Field(NamedTuple):
    """A field with its value and its annotated type."""

    name: str
    value: Any
    hint: Any


def flattened(group: Any) -> Iterator[Field]:
    """Every field of a group and of the groups in it."""
    hints = get_type_hints(type(group), include_extras=True)
    for field in fields(group):
        value = getattr(group, field.name)
        if is_dataclass(value):
            yield from flattened(value)
        else:
            yield Field(field.name, value, hints[field.name])


def built(cls: type[Group], values: Mapping[str, Any]) -> Group:
    """A group of plain values by field name; a missing value, or None, is the default.

    Raises:
        LVSAError: for a value of another type than the field's.
    """
    arguments: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            arguments[name] = built(hint, values)  # type: ignore[arg-type]
        elif values.get(name) is not None:
            arguments[name] = converted(name, values[name], hint)
    return cls(**arguments)


def plain(value: Any) -> Any:
    """A field's value as JSON and YAML have it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def converted(name: str, value: Any, hint: Any) -> Any:
    """A plain value as a field of this type holds it.

    Raises:
        LVSAError: for a value of another type; names the field.
    """
    hint = _without_none(hint)
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if isinstance(value, bool) and {"on", "off"} <= {*options}:
            # As in files of earlier versions, where it was a switch, and in those of YAML 1.1.
            return "on" if value else "off"
        if isinstance(value, str) and value in options:
            return value
        wanted = f"one of {', '.join(options)}"
    elif get_origin(hint) is tuple:
        item = options[0]
        if isinstance(value, list | tuple) and all(type(x) is item for x in value):
            return tuple(value)
        wanted = "a list of whole numbers" if item is int else "a list of texts"
    else:
        # Not isinstance: True is an int, and no number of frames.
        if type(value) is hint:
            return value
        if (hint, type(value)) in ((Path, str), (float, int)):
            with suppress(OverflowError):
                return hint(value)
        wanted = DESCRIBED[hint]
    given = DESCRIBED.get(type(value), type(value).__name__)
    raise LVSAError(f"{name} is {value!r}, {given}; it must be {wanted}")


def check(field: Field) -> None:
    """Stops for a value that no field of this type may have.

    Raises:
        LVSAError: for a number out of its `Range`, or not finite; a text that is not valid UTF-8.
    """
    name, value, hint = flag(field.name), field.value, field.hint
    if isinstance(value, float) and not math.isfinite(value):
        raise LVSAError(f"{name} is {value}; it must be a finite number")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str | Path) and not _is_text(str(text)):
            raise LVSAError(f"{name} is {str(text)!r}; it must be UTF-8 without NUL characters")
    for allowed in getattr(hint, "__metadata__", ()):
        if isinstance(allowed, Range) and value is not None:
            low, high = allowed
            if not low <= value <= high:
                raise LVSAError(
                    f"{name} is {value:,}; allowed: {low:,} to {high:,}, nearest: "
                    f"{low if value < low else high:,}"
                )


def _without_none(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    options = get_args(hint)
    return options[0] if type(None) in options else hint


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
