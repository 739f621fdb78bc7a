"""Long-video sparse attention (LVSA), exact on any number of ranks.

In one call, on a pipeline that diffusers loaded:

    import lvsa

    with lvsa.enable(pipe, num_frames=321, height=480, width=832):
        video = pipe(prompt, num_frames=321, height=480, width=832).frames[0]

With an initialised process group the sequence is cut among its ranks; without one, the same
attention runs in one process.
"""

from typing import TYPE_CHECKING, Any

from lvsa.attention import LVSAttention, TextTokens
from lvsa.pattern import Pattern
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid, Shards

if TYPE_CHECKING:
    from lvsa.adapters.install.enable import LVSASession, enable

__version__ = "0.1.0"

__all__ = [
    "FrameGrid",
    "LVSASession",
    "LVSASettings",
    "LVSAttention",
    "Pattern",
    "Shards",
    "TextTokens",
    "enable",
]


def __getattr__(name: str) -> Any:
    # The engine knows no models; the one call that does is loaded when it is asked for.
    if name in ("enable", "LVSASession"):
        from lvsa.adapters.install import enable as module

        return getattr(module, name)
    raise AttributeError(f"module 'lvsa' has no attribute {name!r}")
