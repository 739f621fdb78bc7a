"""Long-video sparse attention (LVSA), exact on any number of ranks.

In one call, on a pipeline that diffusers loaded:

    import lvsa

    with lvsa.enable(pipe):
        video = pipe(prompt, num_frames=321, height=480, width=832).frames[0]

With an initialized process group the sequence is cut among its ranks; without one, the same
attention runs in one process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvsa.adapters.install.enable import LVSASession as LVSASession
    from lvsa.adapters.install.enable import enable as enable
    from lvsa.attention import LVSAttention as LVSAttention
    from lvsa.attention import TextTokens as TextTokens
    from lvsa.keyframes import even as even
    from lvsa.keyframes import published as published
    from lvsa.pattern import Pattern as Pattern
    from lvsa.pattern import dense as dense
    from lvsa.settings import LVSASettings as LVSASettings
    from lvsa.shards import FrameGrid as FrameGrid
    from lvsa.shards import Shards as Shards

__version__ = "0.1.0"

# Loaded when they are asked for: the command line answers --help without torch, and the engine
# knows no models.
_MODULES = {
    "FrameGrid": "lvsa.shards",
    "LVSASession": "lvsa.adapters.install.enable",
    "LVSASettings": "lvsa.settings",
    "LVSAttention": "lvsa.attention",
    "Pattern": "lvsa.pattern",
    "Shards": "lvsa.shards",
    "TextTokens": "lvsa.attention",
    "dense": "lvsa.pattern",
    "enable": "lvsa.adapters.install.enable",
    "even": "lvsa.keyframes",
    "published": "lvsa.keyframes",
}
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lvsa' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
