"""What a denoising loop remembers from one step to the next, apart from its latents.

Schedulers of several steps keep earlier outputs of the model, guiders may keep averages, random
generators their place. All of them are plain attributes: they are read off the objects and put
back on them, whatever class they have.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint.values import Attributes

CONFIG = "_internal_dict"
"""Attribute of diffusers' objects that holds how they were built: that does not change."""
PLAIN = (
    *(type(None), bool, int, float, str, list, tuple, dict),
    *(Tensor, np.ndarray, np.generic, torch.dtype),
)


def attributes(thing: Any) -> Attributes:
    """The attributes of an object that its steps may change, objects inside it included."""
    config = vars(thing).get(CONFIG, {})
    values = {}
    for name, value in vars(thing).items():
        constant = name in config and config[name] is value and not isinstance(value, list | dict)
        # Functions in an instance are wrappers around its methods.
        if name == CONFIG or constant or isinstance(value, Callable):  # type: ignore[arg-type]
            continue
        own = isinstance(value, PLAIN) or not hasattr(value, "__dict__")
        values[name] = value if own else attributes(value)
    return Attributes(type(thing).__name__, values)


def restore(thing: Any, saved: Attributes) -> None:
    """Puts attributes back on an object of the class that they were read off.

    Raises:
        CheckpointError: for an object of another class.
    """
    if type(thing).__name__ != saved.of:
        raise CheckpointError(
            f"the checkpoint holds the state of a {saved.of}, and this pipeline has a "
            f"{type(thing).__name__}; --fresh begins anew"
        )
    for name, value in saved.values.items():
        if isinstance(value, Attributes):
            restore(getattr(thing, name, None), value)
        else:
            setattr(thing, name, value)


def random_states(generators: Iterable[torch.Generator], device: torch.device) -> dict[str, Any]:
    """States of these generators and of PyTorch's own, for the CPU and for a device."""
    states: dict[str, Any] = {
        "given": [generator.get_state() for generator in generators],
        "cpu": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_random(
    states: dict[str, Any], generators: Iterable[torch.Generator], device: torch.device
) -> None:
    """Puts generators where they were, and PyTorch's own."""
    for generator, state in zip(generators, states["given"], strict=True):
        generator.set_state(state)
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"], device)
