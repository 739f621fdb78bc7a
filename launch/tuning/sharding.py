"""Weights that the ranks of a video share: each keeps its part, and blocks come together to run.

PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`, arXiv 2304.11277) gathers the weights of a
block right before its forward, while the block before it is computed, and drops them after it. They
are the same bits; kernels that round by where a matrix begins in memory may round differently.

A transformer's weights outside of its blocks stay whole. Where the two passes of guidance have
ranks of their own, each rank enters its transformer twice a step and computes one of the two calls:
only what lies within the blocks is gathered as often, and in the same order, by all.
"""

from collections.abc import Callable, Iterator

from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lvsa.adapters.install.sharded import is_sharded
from lvsa.cp_plans.trial import own_class
from lvsa.errors import LVSAError
from lvsa.launch.config import TuningConfig
from lvsa.launch.tuning.caches import CACHES, parse_cache


def check_shared_weights(tuning: TuningConfig, pipeline: str) -> None:
    """Stops for what does not go together with shared weights.

    Args:
        pipeline: name of the pipeline's class.

    Raises:
        LVSAError: with offloading, which would move what FSDP gathers, or a cache that would skip
            nothing.
    """
    if not tuning.shard_weights:
        return
    if tuning.offload != "none":
        raise LVSAError(
            f"--shard-weights keeps weights on the devices of all ranks, and --offload "
            f"{tuning.offload} in the host's memory; leave one of them out"
        )
    cache = None if tuning.cache is None else parse_cache(tuning.cache)[0]
    if cache is not None and not CACHES[cache].skips_shared:
        others = [n for n, c in CACHES.items() if c.skips_shared and pipeline in c.pipelines]
        raise LVSAError(
            f"--cache {tuning.cache} skips nothing where --shard-weights cuts blocks among ranks; "
            f"leave one of them out, or take another cache: {', '.join(others)}"
        )


def shared_weights_without_effect(tuning: TuningConfig, ranks: int) -> list[tuple[bool, str]]:
    """Why --shard-weights changes nothing: whether that is so, and the reason."""
    alone = tuning.shard_weights and ranks == 1
    return [(alone, "--shard-weights: a video of one rank has nobody to share weights with")]


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """What a network repeats: the modules in its lists, without those that lie in another one."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def outside_of_blocks(network: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a network that are in none of its blocks, those that it shares once."""
    inside = {x for block in blocks_of(network) for x in block.parameters()}
    return (x for x in network.parameters() if x not in inside)


def shard(
    network: nn.Module,
    group: dist.ProcessGroup,
    device_type: str,
    *,
    whole: bool,
    before: Callable[[nn.Module], object] = lambda module: None,
) -> None:
    """Cuts a network's weights among the ranks of a group, in place.

    Args:
        network: any; its forward must be entered as ``network(…)``, by all ranks alike.
        group: of several ranks; all of them must call this.
        device_type: where they compute.
        whole: whether weights outside of the blocks stay whole on every rank.
        before: called with each block before it is cut, and with the network when only the rest is
            left; so that not all of a network needs to stand anywhere at once.
    """
    # What is not trained may have several dtypes in one block.
    network.requires_grad_(False)
    mesh = DeviceMesh.from_group(group, device_type)
    for block in blocks_of(network):
        before(block)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    before(network)
    rest = {*outside_of_blocks(network)} if whole else None
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=rest)
    for module in network.modules():
        if is_sharded(module):
            _call_by_its_name(module)


def _call_by_its_name(module: nn.Module) -> None:
    """Names a module's class of FSDP after the one that it took the place of.

    diffusers and transformers look up by name what a model can do.
    """
    cls, own = type(module), own_class(module)
    cls.__name__, cls.__qualname__, cls.__module__ = own.__name__, own.__qualname__, own.__module__


def drop(network: nn.Module) -> None:
    """Frees a rank's part of the weights: FSDP holds on to them for as long as the network lives.

    The network cannot run any more.
    """
    for parameter in network.parameters():
        mine = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        mine.untyped_storage().resize_(0)
    network.to("meta")
