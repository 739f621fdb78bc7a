"""A model's pipeline without weights: shapes, positions and schedules, checked before loading."""

import inspect
import logging
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from lvsa.errors import CheckpointError, UnknownModel
from lvsa.launch.loading.models import ModelSource, check_folder

if TYPE_CHECKING:
    from lvsa.adapters.base import ModelAdapter
    from lvsa.adapters.checkpoints import Defaults

logger = logging.getLogger(__name__)

# Largest numbers that a config may hold, by what its entries are called; networks are built layer
# by layer, and schedules step by step.
LIMITS = {"layers": 1_000, "blocks": 1_000, "depth": 1_000, "timesteps": 100_000}
MOST_ENTRIES = 1_000
# Numbers that the sequence is counted with.
COUNTS = (
    "num_attention_heads",
    "attention_head_dim",
    "patch_size",
    "patch_size_t",
    "scale_factor_spatial",
    "scale_factor_temporal",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
)
# What diffusers' classes raise for configs that they cannot be built from.
BROKEN_CONFIG = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def skeleton_pipeline(source: ModelSource) -> Any:
    """The model's own pipeline class with its networks on the meta device: shapes, no weights.

    Schedulers and guiders, which have no weights, are real; text and image encoders are absent.

    Raises:
        UnknownModel: for a pipeline class that the installed diffusers does not have.
        CheckpointError: for a component that cannot be built from its config.
    """
    pipeline = _class(source.pipeline_class)
    if pipeline is None:
        raise UnknownModel(
            f"--model {source.name}: diffusers {diffusers.__version__} has no "
            f"{source.pipeline_class}; a newer diffusers may have it"
        )
    accepted = inspect.signature(pipeline).parameters
    parts: dict[str, Any] = dict.fromkeys(accepted)
    for name, entry in source.index.items():
        if name in accepted:
            parts[name] = _part(source, name, *entry) if isinstance(entry, list) else entry
    try:
        skeleton = pipeline(**parts)
    except BROKEN_CONFIG as error:
        raise CheckpointError(
            f"--model {source.name}: its parts make no {source.pipeline_class}: {error}"
        ) from error
    # Checkpoints of one shape are told apart by the name they were loaded by.
    skeleton.register_to_config(_name_or_path=source.name)
    return skeleton


def _class(name: str) -> Any:
    """A class of the installed diffusers by name; None where it has none."""
    found = getattr(diffusers, name, None)
    return found if inspect.isclass(found) else None


def _part(source: ModelSource, name: str, library: str | None, class_name: str | None) -> Any:
    """A component without weights; None for one that geometry does not depend on."""
    if library != "diffusers" or class_name is None:
        return None
    check_folder(source, name)
    cls, folder = _class(class_name), source.folder / name
    if cls is None:
        raise CheckpointError(
            f"--model {source.name}: {name} is a {class_name}, which diffusers "
            f"{diffusers.__version__} does not have"
        )
    try:
        config = cls.load_config(folder)
        _check_size(config)
        if not issubclass(cls, torch.nn.Module):
            return cls.from_pretrained(folder)
        with torch.device("meta"):
            return cls.from_config(config)
    except BROKEN_CONFIG as error:
        raise CheckpointError(
            f"--model {source.name}: {name} cannot be built as {class_name} from {folder}: {error}"
        ) from error


def _check_size(config: dict[str, Any]) -> None:
    """Stops for numbers that nothing can be built of, or not without minutes and all memory."""
    for entry, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise CheckpointError(f"{entry} has {len(value):,} entries; at most {MOST_ENTRIES:,}")
        for word, most in LIMITS.items():
            largest = max((n for n in numbers if isinstance(n, int)), default=0)
            if word in entry and largest > most:
                raise CheckpointError(f"{entry} is {largest:,}; at most {most:,}")
        if entry in COUNTS and not all(_counts(n) for n in numbers):
            raise CheckpointError(f"{entry} is {value}; it must be a whole number of at least 1")


def _counts(number: Any) -> bool:
    # None: this model has no such thing.
    return number is None or (type(number) is int and number >= 1)


def defaults_for(source: ModelSource, adapter: "ModelAdapter", skeleton: Any) -> "Defaults | None":
    """What the model's authors generate with; None for a pipeline of unknown kind.

    A checkpoint that is none of the known ones takes after the first that its pipeline loads.
    """
    if known := adapter.known_model(skeleton):
        return known.defaults
    for model in adapter.known_models:
        if source.pipeline_class in model.pipelines:
            logger.info(
                "%s is not a checkpoint known here: defaults of %s", source.name, model.name
            )
            return model.defaults
    return None
