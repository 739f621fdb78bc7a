"""Published checkpoints of every family, as data that imports neither torch nor diffusers."""

from lvsa.adapters import get_adapter, installed_adapters
from lvsa.adapters.checkpoints.cogvideox import COGVIDEOX
from lvsa.adapters.checkpoints.hunyuan15 import HUNYUAN15
from lvsa.adapters.checkpoints.known import ABSENT, GIVEN, Defaults, KnownModel, recognize
from lvsa.adapters.checkpoints.skyreels import SKYREELS
from lvsa.adapters.checkpoints.wan import WAN

BUILT_IN: dict[str, tuple[KnownModel, ...]] = {
    "wan": WAN,
    "cogvideox": COGVIDEOX,
    "hunyuan15": HUNYUAN15,
    "skyreels": SKYREELS,
}


def all_checkpoints() -> list[tuple[str, KnownModel]]:
    """Adapter name and checkpoint, for every family, also of adapters from other packages.

    Only those of other packages are imported for it.
    """
    known = dict(BUILT_IN)
    for name in installed_adapters():
        known[name] = get_adapter(name).known_models
    return [(name, model) for name, models in known.items() for model in models]


__all__ = [
    "ABSENT",
    "BUILT_IN",
    "GIVEN",
    "Defaults",
    "KnownModel",
    "all_checkpoints",
    "recognize",
]
