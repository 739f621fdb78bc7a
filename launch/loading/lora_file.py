"""A LoRA as it is asked for, and its file: on this machine, or on the hub."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvsa.errors import CheckpointError, LVSAError

logger = logging.getLogger(__name__)

# Transformers of a model with two by what users call them: the first steps are noisy.
EXPERTS = {"high": "transformer", "low": "transformer_2"}
SYNTAX = "FILE_OR_ID[:SCALE][:high|low]"
WEIGHTS = "*.safetensors"
SHOWN = 4
"""Names that a message lists."""


@dataclass(frozen=True)
class LoRA:
    """A LoRA as the user asked for it.

    Args:
        source: file, folder, or hub id (org/name, or org/name/path of a file in it).
        scale: how strongly it changes the weights; 1 as it was trained.
        expert: attribute of the one transformer that it is for; None for all.
    """

    source: str
    scale: float = 1.0
    expert: str | None = None

    @classmethod
    def parse(cls, text: str) -> "LoRA":
        """A LoRA from ``FILE_OR_ID[:SCALE][:high|low]``.

        Raises:
            LVSAError: for a scale that is not a finite number, or a missing source.
        """
        source, expert, scale = text, None, 1.0
        head, colon, last = source.rpartition(":")
        if colon and last in EXPERTS:
            source, expert = head, EXPERTS[last]
            head, colon, last = source.rpartition(":")
        if colon and not Path(source).exists():
            try:
                source, scale = head, float(last)
            except ValueError:
                raise LVSAError(
                    f"--lora {text}: {last!r} is no number and none of {', '.join(EXPERTS)}; "
                    f"write {SYNTAX}"
                ) from None
        if not source or not math.isfinite(scale):
            raise LVSAError(f"--lora {text!r}: write {SYNTAX}, with a finite number as the scale")
        return cls(source, scale, expert)


def find_lora(lora: LoRA) -> Path:
    """The LoRA's file; of a hub id it is fetched.

    Raises:
        CheckpointError: where there is none, or more than one to choose from.
    """
    path = Path(lora.source).expanduser()
    if path.is_dir():
        return path / _the_one(lora, sorted(file.name for file in path.glob(WEIGHTS)))
    if path.is_file():
        if path.suffix != Path(WEIGHTS).suffix:
            raise CheckpointError(
                f"--lora {lora.source}: only {WEIGHTS} are read; other formats can run code when "
                "they are: convert it"
            )
        return path
    parts = lora.source.split("/")
    if path.is_absolute() or lora.source.startswith((".", "~")) or len(parts) < 2:
        raise CheckpointError(
            f"--lora {lora.source}: no such file; give a file ({WEIGHTS}), a folder with one, or a "
            "hub id (org/name, or org/name/FILE)"
        )
    return _from_hub(lora, "/".join(parts[:2]), "/".join(parts[2:]))


def _the_one(lora: LoRA, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    found = f"{len(names)} ({', '.join(names[:SHOWN])} …): name one of them" if names else "none"
    raise CheckpointError(f"--lora {lora.source}: one {WEIGHTS} is needed, it has {found}")


def _from_hub(lora: LoRA, repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        if not file:
            file = _the_one(lora, _weights_on_hub(repository))
        return Path(hf_hub_download(repository, file))
    except (EntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"--lora {lora.source}: neither a file nor one on the hub: {error}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"--lora {lora.source}: no such file, and the model hub cannot be reached: {error}"
        ) from error


def _weights_on_hub(repository: str) -> list[str]:
    """Weights of a repository; where the hub cannot be reached, those that were fetched before."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        names = HfApi().list_repo_files(repository)
    except RepositoryNotFoundError:
        raise
    except OSError:
        names = _fetched_before(repository)
        if not names:
            raise
        logger.info("--lora %s: what was fetched before, %s", repository, ", ".join(names))
    return [name for name in names if Path(name).match(WEIGHTS)]


def _fetched_before(repository: str) -> list[str]:
    """Weights of a repository in the cache of this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(WEIGHTS))
