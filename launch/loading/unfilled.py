"""Networks of their configs alone: parameters on the meta device, everything else as it will be."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from lvsa.errors import CheckpointError
from lvsa.launch.loading.models import ModelSource
from lvsa.launch.loading.skeleton import BROKEN_CONFIG
from lvsa.launch.loading.weights import SHOWN


def unfilled_network(
    source: ModelSource, name: str, cls: Any, dtypes: Mapping[str, torch.dtype] | None = None
) -> nn.Module:
    """A network of a pipeline without weights, as diffusers and transformers build it to load them.

    Args:
        source: from `find_model`.
        name: of the component.
        cls: its class.
        dtypes: of its parameters, by their names; without them as its class has them.

    Raises:
        CheckpointError: where it cannot be built from its config, or is not what was loaded.
    """
    folder = source.folder / name
    try:
        with init_empty_weights(include_buffers=False):
            if hasattr(cls, "load_config"):
                network: Any = cls.from_config(cls.load_config(folder))
            else:
                network = cls(cls.config_class.from_pretrained(folder))
        if hasattr(network, "tie_weights"):
            # Modules that have a weight in common were built with one each.
            network.tie_weights()
    except BROKEN_CONFIG as error:
        raise CheckpointError(
            f"--model {source.name}: {name} cannot be built as {cls.__name__} from {folder}: "
            f"{error}"
        ) from error
    parameters = dict(network.named_parameters(remove_duplicate=False))
    if dtypes is not None and parameters.keys() != dtypes.keys():
        others = sorted(parameters.keys() ^ dtypes.keys())
        raise CheckpointError(
            f"--model {source.name}: {name} has other weights than {cls.__name__} of its config "
            f"(quantized?), and ranks cannot share it: {', '.join(others[:SHOWN])}; leave "
            "--shard-weights out"
        )
    for path, parameter in parameters.items():
        if dtypes is not None:
            parameter.data = parameter.data.to(dtypes[path])
    unfilled: nn.Module = network.eval()
    return unfilled
