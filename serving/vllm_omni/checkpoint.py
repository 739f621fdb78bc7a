"""What a checkpoint's configs tell of its model, as the adapters read them: no weights, no network.

The engine brings its own classes of pipelines and transformers; the adapters know those of
diffusers. Both load the same folders, so the adapters are shown what lies there.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lvsa.adapters import adapter_for
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.install.grids import make_pattern
from lvsa.errors import CheckpointError
from lvsa.pattern import Pattern
from lvsa.settings import LVSASettings
from lvsa.shards import FrameGrid

Read = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class ServedModel:
    """A model by its checkpoint.

    Args:
        name: class of its pipeline.
        adapter: what LVSA knows of its family.
        pipe: the configs of its components, where an adapter looks for them.
    """

    name: str
    adapter: ModelAdapter
    pipe: Any

    @property
    def horizon(self) -> int:
        """Training horizon, latent frames."""
        return self.adapter.training_horizon(self.pipe)

    def pattern(self, frames: int, settings: LVSASettings) -> Pattern:
        """The pattern of a video of ``frames`` latent frames; errors as `LVSASettings.pattern`."""
        return make_pattern(self.adapter, self.pipe, FrameGrid(frames, 1, 1), settings)


@lru_cache(maxsize=8)
def served_model(model: str, revision: str | None = None) -> ServedModel:
    """The model in a folder of diffusers' format, or under a hub id.

    Raises:
        UnknownModel: for a pipeline that no adapter serves.
        CheckpointError: where a config is missing or is none.
    """

    def read(file: str) -> Mapping[str, Any]:
        try:
            path = Path(model) / file
            if not Path(model).is_dir():
                path = Path(hf_hub_download(model, file, revision=revision))
            config = json.loads(path.read_text())
        except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise CheckpointError(f"{model}: {file} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{model}: {file} holds no names and values")
        return config

    index = read("model_index.json")
    name = str(index.get("_class_name"))
    return ServedModel(name, adapter_for(name), _pipe(name, index, read, model))


def _pipe(name: str, index: Mapping[str, Any], read: Read, model: str) -> Any:
    """An object of the pipeline's name, with the parts and configs that adapters look at."""
    pipe: Any = type(name, (), {})()
    pipe.name_or_path = model
    pipe.config = SimpleNamespace(**{k: v for k, v in index.items() if not k.startswith("_")})
    for part, entry in index.items():
        if isinstance(entry, list):
            library, class_name = entry
            config = {} if library != "diffusers" else _config(part, class_name, read)
            is_there = class_name is not None
            setattr(
                pipe, part, SimpleNamespace(config=SimpleNamespace(**config)) if is_there else None
            )
    return pipe


def _config(part: str, class_name: str, read: Read) -> Mapping[str, Any]:
    """A component's config; entries that it leaves out are the defaults of diffusers' class."""
    cls = getattr(diffusers, class_name, None)
    file = f"{part}/{getattr(cls, 'config_name', 'config.json')}"
    parameters = {} if cls is None else inspect.signature(cls.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **read(file)}
