"""Environment variables of the plugin that LVSA was published with, for whoever still sets them.

Those that say something about the pattern are options under other names; the others said what that
plugin could not find out by itself, and are needless here. (Its documentation: see NOTICE.)
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from lvsa.errors import LVSAError

PREFIX = "LVSA_"
INTERVAL = 16
"""Video frames between keyframes, where that plugin was told no number and not to choose one."""


def _flag(text: str) -> bool:
    truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return truth[text.strip().lower()]


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    # variable without its prefix → option, and how its text is read
    "WINDOW_SIZE": ("window_size", int),
    "N_FIRST_FRAMES": ("n_first_frames", int),
    "KEY_FRAME_INTERVAL": ("key_frame_interval", int),
    "ROTATE_KEYFRAMES": ("rotate_keyframes", _flag),
    "SPARSITY_SCALE": ("sparsity_scale", float),
    "REFERENCE_LATENT_FRAMES": ("horizon", int),
    "BACKEND": ("backend", str),
}
_SWITCHES = ("AUTO_KEYFRAMES", "EXPAND_WINDOW")
_GEOMETRY = "the size and length are read from every request"
_HOOK = "LVSA is installed by --diffusion-attention-backend LVSA alone"
_STEP = "the denoising step is read from every request"
_NO_FALLBACK = "nothing falls back in silence"
_LOG = "there is no such log"
NEEDLESS = {
    "PATCHES_PER_FRAME": _GEOMETRY,
    "VIDEO_HEIGHT": _GEOMETRY,
    "VIDEO_WIDTH": _GEOMETRY,
    "VAE_SPATIAL_FACTOR": _GEOMETRY,
    "VAE_TEMPORAL_FACTOR": _GEOMETRY,
    "PATCH_SIZE": _GEOMETRY,
    "TOTAL_LATENT_FRAMES": _GEOMETRY,
    "HUNYUAN_HOOK": _HOOK,
    "WAN_HOOK": _HOOK,
    "COSMOS3_HOOK": "Cosmos 3 is not among the models served",
    "CFG_PASSES": _STEP,
    "N_BLOCKS": _STEP,
    "WARN_FALLBACK": _NO_FALLBACK,
    "MEM_LOG": _LOG,
    "STEP_TIME_LOG": _LOG,
    "MASK_LOG": _LOG,
    "DISPATCH_BACKEND": "Cosmos 3 is not among the models served",
    "REPEAT_KV": "Cosmos 3 is not among the models served",
}


def read_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Options that these variables stand for, and remarks on all of them.

    Returns:
        options by name, and a sentence for each variable: what to write instead, or why nothing.

    Raises:
        LVSAError: for a value that cannot be read, or that asks for what is not done.
    """
    given = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX)}
    if "CONFIG" in given:
        given |= _config(given.pop("CONFIG"))
    options: dict[str, Any] = {}
    remarks = []
    for name, text in given.items():
        if name in OPTIONS:
            option, convert = OPTIONS[name]
            options[option] = _read(name, text, convert)
            remarks.append(f'{PREFIX}{name}={text}: say {{"{option}": …}} in additional_config')
        elif name in NEEDLESS:
            remarks.append(f"{PREFIX}{name} has no effect: {NEEDLESS[name]}")
        elif name not in _SWITCHES:
            remarks.append(f"{PREFIX}{name} has no effect: it is not known")
    if _read("AUTO_KEYFRAMES", given.get("AUTO_KEYFRAMES", "1"), _flag):
        if options.pop("key_frame_interval", None) is not None:
            remarks.append(
                f"{PREFIX}KEY_FRAME_INTERVAL has no effect: keyframes are automatic unless "
                f"{PREFIX}AUTO_KEYFRAMES=0"
            )
    else:
        options.setdefault("key_frame_interval", INTERVAL)
    if not _read("EXPAND_WINDOW", given.get("EXPAND_WINDOW", "1"), _flag):
        raise LVSAError(
            f"{PREFIX}EXPAND_WINDOW={given['EXPAND_WINDOW']}: windows always grow over the anchors "
            "in them here; unset it"
        )
    return options, remarks


def _read(name: str, text: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(text)
    except (KeyError, ValueError):
        wanted = {_flag: "0 or 1", int: "a whole number", float: "a number"}[convert]
        raise LVSAError(f"{PREFIX}{name} is {text!r}; it must be {wanted}") from None


def _config(text: str) -> dict[str, str]:
    """The variables that LVSA_CONFIG stands for, which is JSON with their names in lower case."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise LVSAError(f"{PREFIX}CONFIG is not JSON: {error}; it is {text!r}") from None
    if not isinstance(config, dict):
        raise LVSAError(f"{PREFIX}CONFIG is {text!r}; it must hold names and values")
    return {name.upper(): str(value) for name, value in config.items()}
