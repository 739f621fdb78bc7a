"""A function in the place of one object's method, and the method back again."""

from collections.abc import Callable
from typing import Any

Undo = Callable[[], None]

_NONE = object()


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> Undo:
    """Puts ``wrapper`` in the place of a method of this object alone; its class stays as it is.

    Returns:
        What gives the object its method back. Where somebody else put a wrapper over this one
        meanwhile, theirs stays, and calls this one: a wrapper must know by itself that its time
        is over.
    """
    before = vars(owner).get(name, _NONE)
    # Not setattr: pipelines of diffusers take every attribute for a component.
    object.__setattr__(owner, name, wrapper)

    def undo() -> None:
        if vars(owner).get(name) is not wrapper:
            return
        if before is _NONE:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)

    return undo
