"""A model's weights: every tensor that a network needs comes from its checkpoint, or none is used.

diffusers and transformers fill tensors that a checkpoint lacks with random numbers and go on. Here
each network is loaded by itself and asked what was missing, unexpected or of another shape.

Files are mapped, not read: ranks of one node share their pages. What a rank holds beside them are
its own tensors, in the host's memory or, one by one as they are cast, on its device.
"""

import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from lvsa.adapters.base import ModelAdapter
from lvsa.errors import CheckpointError
from lvsa.launch.loading.models import ModelSource, check_folder

logger = logging.getLogger(__name__)

# Networks that only encode what a user gives: one rank does that for all.
ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")
HOST = torch.device("cpu")
SHOWN = 4
"""Tensors that a message names."""
# What diffusers and transformers raise for files that they cannot read.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    SafetensorError,
    pickle.UnpicklingError,
)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_pipeline(
    source: ModelSource,
    dtype: torch.dtype,
    adapter: ModelAdapter,
    encodes: bool = True,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    device: torch.device = HOST,
    others: Mapping[str, torch.nn.Module] | None = None,
) -> Any:
    """The pipeline with its weights.

    Args:
        source: from `find_model`.
        dtype: of the weights.
        adapter: names the components that are kept in another one while the rest is in half
            precision.
        encodes: whether this rank encodes texts and images; one that does not leaves those
            networks, often the largest, on the disk.
        variant: of the files, as in ``model.fp16.safetensors``; the plain ones without it.
        allow_pickle: whether pickled weights may be read where there are no safetensors.
        device: where the networks are to be.
        others: networks by name that are not loaded, since they are here.

    Raises:
        CheckpointError: naming the component and the tensors or files, where anything is missing,
            broken, unexpected or of another shape.
    """
    folder = _weights_folder(source, variant, allow_pickle)
    pipeline = getattr(diffusers, source.pipeline_class)
    parts: dict[str, Any] = dict(others or {})
    for name, entry in source.index.items():
        needed = encodes or name not in ENCODERS
        if not source.on_hub and isinstance(entry, list) and entry[1] is not None and needed:
            check_folder(source, name)
    for name, cls in networks(source):
        if name in parts:
            continue
        if name in ENCODERS and not encodes:
            parts[name] = None
            continue
        own_dtype = dtype_of(name, adapter, dtype)
        own_variant = _checked_variant(source, folder / name, variant, allow_pickle)
        parts[name] = _load(source, folder, name, cls, own_dtype, own_variant, allow_pickle, device)
    try:
        pipe = pipeline.from_pretrained(folder, **parts)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"--model {source.name}: {error}") from error
    # Checkpoints of one shape are told apart by the name they were loaded by.
    pipe.register_to_config(_name_or_path=source.name)
    if adapter.tiled_vae:
        pipe.vae.enable_tiling()
    return pipe


def load_network(
    source: ModelSource,
    name: str,
    dtype: torch.dtype,
    variant: str | None,
    allow_pickle: bool,
    device: torch.device = HOST,
) -> Any:
    """One network of a model with its weights; arguments and errors as above."""
    folder = _weights_folder(source, variant, allow_pickle)
    cls = dict(networks(source))[name]
    own_variant = _checked_variant(source, folder / name, variant, allow_pickle)
    return _load(source, folder, name, cls, dtype, own_variant, allow_pickle, device)


def dtype_of(name: str, adapter: ModelAdapter, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a network of a pipeline in some dtype: some stay in another one then."""
    return dtype if dtype == torch.float32 else adapter.component_dtypes.get(name, dtype)


def networks(source: ModelSource) -> Iterator[tuple[str, Any]]:
    """Name and class of each component that has weights."""
    for name, entry in source.index.items():
        if not isinstance(entry, list) or entry[1] is None:
            continue
        library = {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
        cls = getattr(library, entry[1], None)
        if library is not None and cls is None:
            raise CheckpointError(
                f"--model {source.name}: {name} is a {entry[1]}, which {entry[0]} "
                f"{library.__version__} does not have"
            )
        if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
            yield name, cls


def _weights_folder(source: ModelSource, variant: str | None, allow_pickle: bool) -> Path:
    """The model's folder; of a model on the hub, with its weights downloaded."""
    if not source.on_hub:
        return source.folder
    try:
        folder = getattr(diffusers, source.pipeline_class).download(
            source.name,
            variant=variant,
            use_safetensors=None if allow_pickle else True,
            revision=source.revision,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--model {source.name}: {error}") from error
    return Path(folder)


def _load(
    source: ModelSource,
    folder: Path,
    name: str,
    cls: Any,
    dtype: torch.dtype,
    variant: str | None,
    allow_pickle: bool,
    device: torch.device,
) -> Any:
    """One network with all of its tensors from the checkpoint."""
    # On the host a tensor that needs no cast stays a part of the file, which copies would not be.
    straight = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        network, info = cls.from_pretrained(
            folder / name,
            dtype=dtype,
            variant=variant,
            use_safetensors=None if allow_pickle else True,
            # Reported below, with the names, instead of an error that leaves them out.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **straight,
        )
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f"--model {source.name}: {name} cannot be loaded as {cls.__name__}: {error}"
        ) from error
    problems = [
        f"{what}: {_listed(found)}"
        for what, found in (
            ("missing", info["missing_keys"]),
            ("unexpected", info["unexpected_keys"]),
            ("of another shape", info["mismatched_keys"]),
        )
        if found
    ]
    if problems:
        raise CheckpointError(
            f"--model {source.name}: the weights of {name} are not those of its config "
            f"({cls.__name__}). Tensors {'; '.join(problems)}. Fetch the checkpoint again, or use "
            "the config that belongs to it"
        )
    return network


def _listed(keys: Any) -> str:
    names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _checked_variant(
    source: ModelSource, folder: Path, variant: str | None, allow_pickle: bool
) -> str | None:
    """The variant to load of a component; its plain files, with a warning, where it has no other.

    Raises:
        CheckpointError: where the component has no safetensors; says what it has.
    """
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    variants = {_variant_of(name) for name in weights}
    if variant in variants:
        _check_shards(source, folder, variant)
        return variant
    if None in variants:
        logger.warning("%s/ has no variant %s: its plain weights are read", folder.name, variant)
        _check_shards(source, folder, None)
        return None
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled and allow_pickle:
        return variant
    found = "the folder holds none"
    if variants:
        known = ", ".join(sorted(v for v in variants if v))
        found = f"there are the variants {known}: give --variant"
    elif pickled:
        found = (
            f"there are pickled weights ({_listed(pickled)}), which can run code when they are "
            "read: convert them to safetensors, or give --allow-pickle if you trust them"
        )
    what = f"variant {variant} of its weights" if variant else "weights (*.safetensors)"
    raise CheckpointError(f"--model {source.name}: {folder.name}/ has no {what}; {found}")


def _variant_of(name: str) -> str | None:
    """``fp16`` of ``model.fp16.safetensors``, shards included; None of a plain file."""
    parts = name.removesuffix(".safetensors").split(".")
    return parts[-1].split("-")[0] if len(parts) > 1 else None


def _check_shards(source: ModelSource, folder: Path, variant: str | None) -> None:
    """Every file that an index of shards names must be there."""
    suffix = f".{variant}" if variant else ""
    for index in folder.glob(f"*.safetensors.index{suffix}.json"):
        try:
            named = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"--model {source.name}: {folder.name}/{index.name} is broken: {error}"
            ) from error
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise CheckpointError(
                f"--model {source.name}: {folder.name}/ lacks {_listed(missing)}, which "
                f"{index.name} names; fetch the checkpoint again"
            )
