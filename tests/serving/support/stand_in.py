"""vLLM-Omni's own attention classes and registry, without the engine: what they import stands in.

`make install` puts the wheel's files, and none of its dependencies, in `FOLDER`, which no other
import sees. Two of its modules are run as they are; the forward context, the configuration and the
platform, which would need vLLM, are objects that a test fills.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.support.missing import missing

FOLDER = Path(sys.prefix) / "share" / "vllm-omni"
OURS = "lvsa.serving.vllm_omni"
PACKAGES = (
    "vllm_omni",
    "vllm_omni.diffusion",
    "vllm_omni.diffusion.attention",
    "vllm_omni.diffusion.attention.backends",
)


MODULES = {
    "abstract": "vllm_omni.diffusion.attention.backends.abstract",
    "registry": "vllm_omni.diffusion.attention.backends.registry",
    "backend": f"{OURS}.backend",
    "plugin": f"{OURS}.plugin",
    "request": f"{OURS}.request",
    "hook": f"{OURS}.hooks.base",
    "hunyuan15": f"{OURS}.hooks.hunyuan15",
}


@dataclass
class Engine:
    """What the engine would say, and its own modules and the plugin's by their last names.

    Args:
        config: of the model that is being built.
        context: of the forward that runs; None outside of one.
        dense: name of the class that the platform takes for dense attention.
    """

    config: Any = None
    context: Any = None
    dense: str = ""

    def __getattr__(self, name: str) -> Any:
        if name not in MODULES:
            raise AttributeError(name)
        return importlib.import_module(MODULES[name])


def configuration(**changed: Any) -> SimpleNamespace:
    """What the plugin reads of an ``OmniDiffusionConfig``, for the bundled model."""
    parallel = SimpleNamespace(ring_degree=changed.pop("ring_degree", 1))
    default = {
        "model": "assets/tiny-wan",
        "revision": None,
        "model_class_name": "WanPipeline",
        "additional_config": {},
        "diffusion_kv_cache_dtype": None,
    }
    return SimpleNamespace(parallel_config=parallel, **{**default, **changed})


@contextmanager
def stand_in() -> Iterator[Engine]:
    """The wheel's modules importable for as long as the block runs, and the plugin's anew."""
    if not (FOLDER / "vllm_omni").is_dir():
        missing(f"no vLLM-Omni in {FOLDER}; make install puts it there")
    engine = Engine(config=configuration())
    before = dict(sys.modules)
    path = list(sys.path)
    for name in [name for name in sys.modules if name.startswith(OURS)]:
        del sys.modules[name]
    for name in PACKAGES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(FOLDER / name.replace(".", "/"))]
    _module("vllm.logger", init_logger=lambda name: SimpleNamespace())
    _module("vllm.utils.import_utils", resolve_obj_by_qualname=_resolve)
    _module("vllm_omni.platforms", current_omni_platform=_Platform(engine))
    _module(
        "vllm_omni.diffusion.forward_context",
        get_forward_context=lambda: engine.context,
        is_forward_context_available=lambda: engine.context is not None,
    )
    _module(
        "vllm_omni.diffusion.config", get_current_diffusion_config_or_none=lambda: engine.config
    )
    sys.path.append(str(FOLDER))
    try:
        yield engine
    finally:
        sys.path[:] = path
        for name in {*sys.modules} - {*before}:
            if name.partition(".")[0] in ("vllm", "vllm_omni", "aenum") or name.startswith(OURS):
                del sys.modules[name]
        sys.modules.update({k: v for k, v in before.items() if k.startswith(OURS)})


def _module(name: str, **contents: Any) -> None:
    parent = name
    while parent := parent.rpartition(".")[0]:
        sys.modules.setdefault(parent, ModuleType(parent))
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(contents)


def _resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class _Platform:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_diffusion_attn_backend_cls(self, **_: Any) -> str:
        return self.engine.dense
