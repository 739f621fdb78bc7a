"""Options of a server: LVSA's settings and the kernel, as the engine's configuration spells them.

``--additional-config '{"lvsa": {"rotate_keyframes": true}}'``. Values are held
against their types here, so that a mistake stops the server as it starts, not at a request.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lvsa.backends import known_backends
from lvsa.errors import LVSAError
from lvsa.settings import LVSASettings, joined

KEY = "lvsa"
"""Under this name the options stand in the engine's ``additional_config``."""


@dataclass(frozen=True)
class ServingOptions(LVSASettings):
    """LVSA's settings, and what runs them."""

    backend: str = "auto"
    """Attention kernel; a name of `lvsa.backends`."""


def read_options(given: object, defaults: Mapping[str, Any] | None = None) -> ServingOptions:
    """The options that a user gave.

    Args:
        given: what stands under `KEY` in ``additional_config``; None for nothing.
        defaults: options that hold where ``given`` says nothing.

    Raises:
        LVSAError: for a name that is none of the options, or a value of another type.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise LVSAError(
            f'additional_config["{KEY}"] is {given!r}; it must hold options by name, as in '
            f'{{"{KEY}": {{"rotate_keyframes": true}}}}'
        )
    hints = get_type_hints(ServingOptions)
    known = [field.name for field in fields(ServingOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise LVSAError(
                f'additional_config["{KEY}"] has no option {name!r}; known: {", ".join(known)}'
                + (f". Did you mean {near[0]!r}?" if near else "")
            )
    values = {**(defaults or {}), **given}
    options = ServingOptions(**{name: _value(name, hints[name], values[name]) for name in values})
    kernel = options.backend.partition(":")[0]
    if kernel not in known_backends():
        raise LVSAError(
            f"backend is {options.backend!r}; known kernels: {joined(known_backends())}"
        )
    return options


def _value(name: str, hint: Any, value: Any) -> Any:
    """A JSON value as the type of an option."""
    origin, accepted = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in accepted:
            return value
        raise LVSAError(f"{name} is {value!r}; allowed: {', '.join(map(repr, accepted))}")
    if origin is tuple:
        if isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
        raise LVSAError(f"{name} is {value!r}; it must be a list of whole numbers")
    kinds = accepted if origin is UnionType else (hint,)
    # A bool is an int to Python; a whole number is as good as a fraction.
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    wanted = next(words[kind] for kind in kinds if kind in words)
    raise LVSAError(f"{name} is {value!r}; it must be {wanted}")
