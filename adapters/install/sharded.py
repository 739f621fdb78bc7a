"""Pipelines whose weights are cut among ranks by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Ranks that hold parts of a network must run it together, and gather the same parts in one order.
"""

from collections.abc import Iterator
from typing import Any

from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lvsa.errors import LVSAError


def is_sharded(network: Any) -> bool:
    """Whether a network's weights are cut among ranks."""
    return isinstance(network, FSDPModule)


def encoders_are_sharded(pipe: Any, transformers: dict[str, nn.Module]) -> bool:
    """Whether weights of a network that is none of a pipeline's transformers are cut among ranks.

    Some of its weights suffice, by FSDP or in another way.
    """
    others = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return any(
        isinstance(weight, DTensor)
        for part in others
        if all(part is not transformer for transformer in transformers.values())
        for weight in part.parameters()
    )


def check_gathering(transformers: dict[str, nn.Module], guidance: dist.ProcessGroup) -> None:
    """Stops where ranks that compute one of two calls each would wait for parts of the other.

    FSDP gathers what is in no block whenever a transformer is called, also where the call's result
    comes from the other rank; what is in a block, only where it is computed.

    Args:
        guidance: the ranks of the two passes.

    Raises:
        LVSAError: naming the transformer and the weight.
    """
    passes = {*dist.get_process_group_ranks(guidance)}
    for attribute, transformer in transformers.items():
        for name, weight in _outside(transformer):
            if not isinstance(weight, DTensor):
                continue
            if passes <= {*weight.device_mesh.mesh.flatten().tolist()}:
                raise LVSAError(
                    f"{attribute}.{name} is cut among the ranks of both guidance passes, and is in "
                    "no block of its own: each of them would gather it in calls that the other "
                    "computes. Leave it whole (fully_shard's ignored_params), cut it among the "
                    "ranks of one pass, or give a mesh without guidance"
                )


def _outside(transformer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights that FSDP gathers with the transformer: of no module that it gathers by itself."""
    alone = [path for path, module in transformer.named_modules() if path and is_sharded(module)]
    for name, weight in transformer.named_parameters():
        if not any(name.startswith(f"{path}.") for path in alone):
            yield name, weight
