"""LoRAs: found, held against the model before its weights are loaded, and merged into them.

diffusers reads the formats that LoRAs are published in, and only warns of tensors that it has no
use for. Here every tensor must belong to a layer of the model. A merged LoRA costs neither memory
nor time, and whatever comes after it, offloading, compiling, caching, meets plain layers.
"""

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers.utils.state_dict_utils import (
    _load_sft_state_dict_metadata,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lvsa.errors import CheckpointError, LVSAError
from lvsa.launch.loading.lora_file import EXPERTS, SHOWN, LoRA, find_lora

logger = logging.getLogger(__name__)

PREFIX = "transformer"
# What diffusers and peft raise for a file that they make nothing of.
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, IndexError, SafetensorError)


class FoundLoRA(NamedTuple):
    """A LoRA and its file, which fits the model."""

    lora: LoRA
    file: Path


@dataclass(frozen=True)
class LoadedLoRA:
    """A LoRA's tensors, by the names that diffusers gives them.

    Args:
        prefix: what all names begin with, if anything.
        metadata: how it was trained, where the file says so.
    """

    tensors: dict[str, Tensor]
    prefix: str | None
    metadata: Any = None


def check_loras(
    texts: Sequence[str], pipe: Any, transformers: Mapping[str, nn.Module]
) -> tuple[FoundLoRA, ...]:
    """LoRAs and their files, which fit the model. Files of hub ids are fetched.

    Args:
        texts: as `LoRA.parse` takes them.
        pipe: skeleton of the pipeline.
        transformers: of it, by attribute; their weights may be on the meta device.

    Raises:
        LVSAError: without peft, for an expert that the model does not have, or a syntax error.
        CheckpointError: for a file that is missing or broken, or has a tensor without a place in
            the model.
    """
    if texts:
        _check_peft()
    found = []
    for lora in map(LoRA.parse, texts):
        if lora.expert is not None and lora.expert not in transformers:
            raise LVSAError(
                f"--lora {lora.source}: this {type(pipe).__name__} has one transformer, not two; "
                f"leave {' and '.join(f':{name}' for name in EXPERTS)} out"
            )
        file = find_lora(lora)
        loaded = read_lora(lora, file, type(pipe))
        for transformer in _targets(lora, transformers).values():
            _check_fit(lora, loaded, transformer)
        found.append(FoundLoRA(lora, file))
    return tuple(found)


def merge_loras(
    loras: Sequence[FoundLoRA], pipe: Any, transformers: Mapping[str, nn.Module]
) -> None:
    """Adds LoRAs to the weights of a pipeline's transformers.

    Args:
        loras: from `check_loras`.
        pipe: with its weights.
        transformers: of it, by attribute.

    Raises:
        CheckpointError: where a merged weight would not be finite, or peft refuses the LoRA.
    """
    for lora, file in loras:
        loaded = read_lora(lora, file, type(pipe))
        for name, transformer in _targets(lora, transformers).items():
            model: Any = transformer
            try:
                model.load_lora_adapter(
                    dict(loaded.tensors),
                    prefix=loaded.prefix,
                    adapter_name="lora",
                    metadata=loaded.metadata,
                )
                model.fuse_lora(lora_scale=lora.scale, safe_fusing=True, adapter_names=["lora"])
            except UNREADABLE as error:
                raise CheckpointError(
                    f"--lora {lora.source}: cannot be merged into {name}: {error}"
                ) from error
            model.unload_lora()
            logger.info("merged %s into %s, scale %g", lora.source, name, lora.scale)


def read_lora(lora: LoRA, file: Path, pipeline: Any) -> LoadedLoRA:
    """The tensors of a LoRA, in diffusers' names.

    Args:
        pipeline: class of the pipeline, which knows formats that are published for its models.

    Raises:
        CheckpointError: for a file that cannot be read as a LoRA.
    """
    try:
        tensors, metadata = load_file(file), _load_sft_state_dict_metadata(str(file))
        if any("dora_scale" in name for name in tensors):
            raise CheckpointError(
                f"--lora {lora.source}: is a DoRA, whose magnitudes diffusers "
                f"{diffusers.__version__} leaves out; give a plain LoRA"
            )
        if hasattr(pipeline, "lora_state_dict"):
            tensors, metadata = pipeline.lora_state_dict(
                str(file.parent),
                weight_name=file.name,
                use_safetensors=True,
                return_lora_metadata=True,
            )
        if not any("lora_A" in name or ".lokr_" in name for name in tensors):
            tensors = convert_unet_state_dict_to_peft(tensors)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"--lora {lora.source}: {file} is no LoRA: {error}") from error
    if not tensors:
        raise CheckpointError(f"--lora {lora.source}: {file} holds no tensors")
    prefixed = any(name.startswith(f"{PREFIX}.") for name in tensors)
    return LoadedLoRA(tensors, PREFIX if prefixed else None, metadata)


def _check_fit(lora: LoRA, loaded: LoadedLoRA, transformer: nn.Module) -> None:
    """Stops for tensors that the model has no layer for, or one of another shape."""
    layers = dict(transformer.named_modules())
    strange, misshapen = [], []
    for name, tensor in loaded.tensors.items():
        inside = name if loaded.prefix is None else name.removeprefix(f"{loaded.prefix}.")
        layer, _, part = inside.replace(".lokr_", ".lora_").partition(".lora_")
        weight = getattr(layers.get(layer), "weight", None)
        if weight is None or not part or (loaded.prefix and inside == name):
            strange.append(name)
        elif (part == "A.weight" and tensor.shape[1:] != weight.shape[1:]) or (
            part == "B.weight" and tensor.shape[0] != weight.shape[0]
        ):
            misshapen.append(f"{name} {tuple(tensor.shape)} for {tuple(weight.shape)}")
    problems = [
        f"{what}: {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        for what, names in (("without a layer", strange), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"--lora {lora.source}: is not for this model ({type(transformer).__name__}). Tensors "
            f"{'; '.join(problems)}. Give a LoRA that was made for this checkpoint"
        )


def _targets(lora: LoRA, transformers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {n: t for n, t in transformers.items() if lora.expert in (None, n)}


def _check_peft() -> None:
    if not diffusers.utils.is_peft_available():
        raise LVSAError("--lora needs peft: pip install peft, or lvsa-launcher[lora]")
    if not diffusers.utils.USE_PEFT_BACKEND:
        raise LVSAError(
            f"--lora: peft {importlib.metadata.version('peft')} is too old for diffusers "
            f"{diffusers.__version__}: pip install --upgrade peft"
        )
