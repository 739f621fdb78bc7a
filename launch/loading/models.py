"""Where a model is, and what it says about itself: nothing here needs torch."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvsa.adapters import known_adapters
from lvsa.errors import CheckpointError, UnknownModel

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parents[2] / "assets"
INDEX = "model_index.json"
COMPONENTS = ("transformer", "vae", "scheduler", "guider", "text_encoder", "tokenizer", "image_")
# Enough of a repository to know its geometry: some kilobytes.
CONFIG_FILES = [INDEX, "*/config.json", "*/scheduler_config.json", "*/guider_config.json"]


@dataclass(frozen=True)
class ModelSource:
    """A model as it was asked for, and the directory with (at least) its configs.

    Args:
        name: as it was asked for.
        folder: in diffusers' format.
        index: contents of its model_index.json.
        revision: commit on the model hub; None for a model of this machine.
        loaded_as: pipeline class to load it into, where that is not the one in its index.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    revision: str | None = None
    loaded_as: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether its weights are on the model hub."""
        return self.revision is not None

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class."""
        return self.loaded_as or str(self.index["_class_name"])


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """A model that comes along, a directory, or a hub id, of which only the configs are fetched.

    Args:
        revision: branch, tag or commit of a hub id.

    Raises:
        UnknownModel: where it is none of these.
        CheckpointError: where its index is broken.
    """
    path = Path(os.path.expanduser(name))
    if path.name == name and os.path.isfile(ASSETS / name / INDEX):
        path = ASSETS / name
    # Of os.path, which takes a name that no file can have for one that none has.
    if os.path.isdir(path):
        return ModelSource(name, path, read_index(name, path))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        come_along = sorted(p.name for p in ASSETS.iterdir() if (p / INDEX).is_file())
        raise UnknownModel(
            f"--model {name}: no such directory; give a directory in diffusers' format, a hub id "
            f"(org/name), or one of {', '.join(come_along)}"
        )
    folder = _configs_from_hub(name, revision)
    return ModelSource(name, folder, read_index(name, folder), revision=folder.name)


def read_index(name: str, folder: Path) -> dict[str, Any]:
    """Contents of a model's model_index.json.

    Raises:
        UnknownModel: where there is none.
        CheckpointError: where it is not what diffusers writes.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownModel(
            f"--model {name}: {folder} has no {INDEX}; is it in diffusers' format? Repositories of "
            "that format are often named …-Diffusers"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"--model {name}: {folder / INDEX} is not JSON: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"--model {name}: {folder / INDEX} names no pipeline (_class_name)")
    for part, entry in index.items():
        # Beside components there are settings of the pipeline, which are no lists.
        component = isinstance(entry, list) or part.startswith(COMPONENTS)
        if component and entry is not None and not _are_names(entry):
            raise CheckpointError(
                f"--model {name}: {part} is {entry} in {folder / INDEX}; it must be a library and "
                "a class"
            )
    return index


def check_folder(source: ModelSource, part: str) -> None:
    """Stops where a model's index names a part whose folder is not there."""
    if not (source.folder / part).is_dir():
        library, cls = source.index[part]
        raise CheckpointError(
            f"--model {source.name}: {source.folder} has no folder {part}/, though its {INDEX} "
            f"names one ({cls} of {library}); the checkpoint is not whole"
        )


def _are_names(entry: Any) -> bool:
    named = isinstance(entry, list) and len(entry) == 2
    return named and all(item is None or isinstance(item, str) for item in entry)


def _configs_from_hub(name: str, revision: str | None) -> Path:
    """The folder of a hub model's configs; it is named after their commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=CONFIG_FILES))
    except RevisionNotFoundError as error:
        raise UnknownModel(f"--model {name} has no revision {revision}: {error}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(f"--model {name}: neither a directory nor a hub id: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnknownModel(
            f"--model {name}: no such directory, and the model hub cannot be reached: {error}"
        ) from error


def models_table() -> str:
    """The known checkpoints with their defaults, for ``--help-models``."""
    from lvsa.adapters.checkpoints import all_checkpoints
    from lvsa.adapters.checkpoints.loras import DISTILLED_LORAS

    head = (
        "model", "hub id", "size", "frames", "fps", "horizon",
        "steps", "guidance", "shift", "boundary", "scheduler", "from",
    )  # fmt: skip
    rows = [head]
    for _, model in all_checkpoints():
        d = model.defaults
        rows.append(
            (
                model.name,
                model.repository or "(comes along)",
                f"{d.height}×{d.width}",
                str(d.num_frames),
                str(d.fps),
                str(model.horizon),
                str(d.steps),
                _joined(d.guidance, d.guidance_2) + (" dynamic" if d.dynamic_guidance else ""),
                _joined(d.flow_shift_480p, d.flow_shift),
                _joined(d.boundary),
                d.scheduler or "",
                d.source or "",
            )
        )
    for lora in DISTILLED_LORAS:
        rows.append(
            (
                f"  with LoRAs: {lora.name}", lora.repository, "", "", "", "", str(lora.steps),
                _joined(lora.guidance), _joined(lora.flow_shift), "", "", "",
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "size: height × width, pixels. frames: video frames. horizon: latent frames that the",
            "model was trained on, and that automatic keyframes attend. guidance: of the high- and",
            "the low-noise transformer where there are two; boundary: the noise level between.",
            "shift: of flow matching; where two are given, at 480p and at 720p. scheduler: where",
            "it is not the checkpoint's. from: where on GitHub the authors say so.",
            "Adapters: " + ", ".join(known_adapters()),
            "",
        ]
    )


def _joined(*numbers: float | None) -> str:
    """Numbers for the table, without those that are not there."""
    return " / ".join(f"{number:g}" for number in numbers if number is not None)
