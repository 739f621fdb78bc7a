"""One adapter per model family, found by name, by pipeline, or through an entry point.

Each file beside this one is a model family; `base` is their contract, `checkpoints` holds what is
known of published weights, and `install` puts an adapter to work on a pipeline.

Other packages add adapters under the entry-point group ``lvsa.adapters``. Nothing is imported
before it is asked for, and this module imports neither torch nor diffusers.
"""

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from lvsa.errors import LVSAError, UnknownModel

if TYPE_CHECKING:
    from lvsa.adapters.base import ModelAdapter

GROUP = "lvsa.adapters"
# Name → module:class, and the pipeline classes that it serves, so that finding an adapter for a
# pipeline imports one module and not all.
BUILT_IN: dict[str, str] = {
    "wan": "lvsa.adapters.wan:WanAdapter",
    "cogvideox": "lvsa.adapters.cogvideox:CogVideoXAdapter",
    "hunyuan15": "lvsa.adapters.hunyuan15:HunyuanVideo15Adapter",
    "skyreels": "lvsa.adapters.skyreels:SkyReelsAdapter",
}
PIPELINES: dict[str, str] = {
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
    "WanVideoToVideoPipeline": "wan",
    "WanVACEPipeline": "wan",
    "CogVideoXPipeline": "cogvideox",
    "CogVideoXImageToVideoPipeline": "cogvideox",
    "CogVideoXVideoToVideoPipeline": "cogvideox",
    "HunyuanVideo15Pipeline": "hunyuan15",
    "HunyuanVideo15ImageToVideoPipeline": "hunyuan15",
    "SkyReelsV2Pipeline": "skyreels",
    "SkyReelsV2ImageToVideoPipeline": "skyreels",
    # Not served: their adapter says why.
    "SkyReelsV2DiffusionForcingPipeline": "skyreels",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "skyreels",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "skyreels",
}


def installed_adapters() -> dict[str, EntryPoint]:
    """Adapters of other packages, by name; none of them is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN}


def known_adapters() -> list[str]:
    """Names of all adapters, built in and installed."""
    return sorted({*BUILT_IN, *installed_adapters()})


def get_adapter(name: str) -> "ModelAdapter":
    """A new adapter by name.

    Raises:
        UnknownModel: lists the known names.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        make: Callable[[], Any] = getattr(import_module(module), attribute)
    elif name in (installed := installed_adapters()):
        make = installed[name].load()
    else:
        known = known_adapters()
        near = difflib.get_close_matches(name, known, 1)
        raise UnknownModel(
            f"no adapter named {name!r}; known: {', '.join(known)}"
            + (f". Did you mean {near[0]!r}?" if near else "")
        )
    from lvsa.adapters.base import ModelAdapter

    adapter = make()
    if not isinstance(adapter, ModelAdapter):
        raise LVSAError(f"adapter {name!r} is a {type(adapter).__name__}, not a ModelAdapter")
    return adapter


def adapter_for(pipeline_class: str | type) -> "ModelAdapter":
    """The adapter that serves a pipeline, by its class or the name of it.

    Raises:
        UnknownModel: lists the pipelines that are known.
    """
    names = (
        [pipeline_class]
        if isinstance(pipeline_class, str)
        else [cls.__name__ for cls in pipeline_class.__mro__]
    )
    for name in names:
        if name in PIPELINES:
            return get_adapter(PIPELINES[name])
    for name in installed_adapters():
        adapter = get_adapter(name)
        if any(wanted in adapter.pipelines for wanted in names):
            return adapter
    raise UnknownModel(
        f"no adapter serves {names[0]}; known pipelines: {', '.join(sorted(PIPELINES))}; adapters "
        f"installed beside them: {', '.join(sorted(installed_adapters())) or 'none'}"
    )


__all__ = [
    "BUILT_IN",
    "GROUP",
    "PIPELINES",
    "adapter_for",
    "get_adapter",
    "installed_adapters",
    "known_adapters",
]
