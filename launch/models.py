"""Where a model is, what it is, and a skeleton of its pipeline without weights."""

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from lvsa.adapters import known_adapters
from lvsa.adapters.base import ModelAdapter
from lvsa.adapters.checkpoints import Defaults, all_checkpoints
from lvsa.adapters.checkpoints.wan import TINY_WAN
from lvsa.errors import UnknownModel

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parent.parent / "assets"
# Models that come along, with the defaults that a pipeline's class cannot know.
EMBEDDED: dict[str, Defaults] = {TINY_WAN.name: TINY_WAN.defaults}
ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")
INDEX = "model_index.json"
# Enough of a repository to know its geometry: some kilobytes.
CONFIG_FILES = [INDEX, "*/config.json", "*/scheduler_config.json", "*/guider_config.json"]


@dataclass(frozen=True)
class ModelSource:
    """A model as it was asked for, and the directory with (at least) its configs."""

    name: str
    folder: Path
    on_hub: bool = False
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Pipeline class to load it into, where that is not the one in its index."""

    @property
    def index(self) -> dict[str, Any]:
        """Contents of model_index.json."""
        index: dict[str, Any] = json.loads((self.folder / INDEX).read_text())
        return index

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class."""
        return self.variant or str(self.index["_class_name"])


def find_model(name: str) -> ModelSource:
    """An embedded model, a directory, or a hub id, of which only the configs are fetched here.

    Raises:
        UnknownModel: where it is none of these.
    """
    if name in EMBEDDED:
        return _directory(name, ASSETS / name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(name, path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UnknownModel(
            f"--model {name}: no such directory; give a directory in diffusers' format, a hub id "
            f"(org/name), or one of {', '.join(EMBEDDED)}"
        )
    try:
        folder = snapshot_download(name, allow_patterns=CONFIG_FILES)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(f"--model {name}: neither a directory nor a hub id: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnknownModel(
            f"--model {name}: no such directory, and the model hub cannot be reached: {error}"
        ) from error
    if not (Path(folder) / INDEX).is_file():
        raise UnknownModel(
            f"--model {name}: the repository has no {INDEX}; is it in diffusers' format? Such "
            "repositories are often named …-Diffusers"
        )
    return ModelSource(name, Path(folder), on_hub=True)


def _directory(name: str, folder: Path) -> ModelSource:
    if not (folder / INDEX).is_file():
        raise UnknownModel(f"--model {name}: {folder} has no {INDEX}; is it in diffusers' format?")
    return ModelSource(name, folder)


def skeleton_pipeline(source: ModelSource) -> Any:
    """The model's own pipeline class with its networks on the meta device: shapes, no weights.

    Schedulers and guiders, which have no weights, are real; text and image encoders are absent.

    Raises:
        UnknownModel: for a pipeline class that the installed diffusers does not have.
    """
    index = source.index
    pipeline = getattr(diffusers, source.pipeline_class, None)
    if pipeline is None:
        raise UnknownModel(
            f"--model {source.name}: diffusers {diffusers.__version__} has no "
            f"{source.pipeline_class}; a newer diffusers may have it"
        )
    accepted = inspect.signature(pipeline.__init__).parameters
    parts: dict[str, Any] = {name: None for name in list(accepted)[1:]}
    for name, entry in index.items():
        if name not in accepted:
            continue
        if isinstance(entry, list):
            parts[name] = _skeleton_part(source.folder / name, *entry)
        else:
            parts[name] = entry
    skeleton = pipeline(**parts)
    # Checkpoints of one shape are told apart by the name they were loaded by.
    skeleton.register_to_config(_name_or_path=source.name)
    return skeleton


def _skeleton_part(folder: Path, library: str | None, class_name: str | None) -> Any:
    """A component without weights; None for one that geometry does not depend on."""
    if library != "diffusers" or class_name is None:
        return None
    cls = getattr(diffusers, class_name)
    if not issubclass(cls, torch.nn.Module):
        return cls.from_pretrained(folder)
    with torch.device("meta"):
        return cls.from_config(cls.load_config(folder))


def defaults_for(source: ModelSource, adapter: ModelAdapter, skeleton: Any) -> Defaults | None:
    """What the model's authors generate with; None for a pipeline of unknown kind.

    A checkpoint that is none of the known ones takes after the first that its pipeline loads.
    """
    if source.name in EMBEDDED:
        return EMBEDDED[source.name]
    if known := adapter.known_model(skeleton):
        return known.defaults
    for model in adapter.known_models:
        if source.pipeline_class in model.pipelines:
            logger.info(
                "%s is not a checkpoint known here: defaults of %s", source.name, model.name
            )
            return model.defaults
    return None


def models_table() -> str:
    """The known checkpoints with their defaults, for ``--help-models``."""
    head = ("model", "hub id", "size", "frames", "steps", "guidance", "fps", "horizon")
    rows = [head]
    for _, model in all_checkpoints():
        origin = model.repository or "(comes along)"
        rows.append((model.name, origin, *_columns(model.defaults), str(model.horizon)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "size: height × width, pixels. frames: video frames. horizon: latent frames that the",
            "model was trained on, and that --auto-keyframes attends. Adapters: "
            + ", ".join(known_adapters()),
            "",
        ]
    )


def _columns(d: Defaults) -> tuple[str, str, str, str, str]:
    return f"{d.height}×{d.width}", str(d.num_frames), str(d.steps), f"{d.guidance:g}", str(d.fps)
