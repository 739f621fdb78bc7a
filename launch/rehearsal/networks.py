"""A model's networks without weights: how large they are, and as fake tensors to run."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lvsa.cp_plans.trial import meta_twin
from lvsa.launch.job import Job
from lvsa.launch.loading.unfilled import unfilled_network
from lvsa.launch.loading.weights import ENCODERS, dtype_of, networks
from lvsa.launch.tuning.sharding import blocks_of, outside_of_blocks

LAYERS_RUN = 3
"""Blocks of a transformer that run: those after them take what these leave, no more."""


@dataclass(frozen=True)
class Network:
    """A network on the meta device, its weights in the dtypes that they are loaded in.

    Args:
        module: the whole of it.
        encodes: whether it encodes texts and images, and one rank has it for all where they do
            not share it.
        denoises: whether it is a transformer that runs in every step.
    """

    module: nn.Module
    encodes: bool
    denoises: bool

    @property
    def bytes(self) -> int:
        """Of all weights and buffers."""
        return size_of(self.module)

    @property
    def can_be_shared(self) -> bool:
        """Whether ranks may keep parts of it."""
        return self.encodes or self.denoises

    def part(self, ranks: int) -> int:
        """Bytes of weights and buffers that a rank keeps where so many share the weights.

        Of a weight whose first dimension they do not divide each has as much as the largest part.
        """
        kept = [x for block in blocks_of(self.module) for x in block.parameters()]
        rest = [*outside_of_blocks(self.module)]
        whole, cut = (rest, kept) if self.denoises else ([], [*kept, *rest])
        return sum(x.nbytes for x in (*whole, *self.module.buffers())) + sum(
            -(-x.shape[0] // ranks) * x[:1].nbytes for x in cut
        )

    @property
    def gathered(self) -> int:
        """Bytes of weights that come together while it runs, where ranks share them.

        Of blocks three: one that is computed, and the next as it arrives and as it is put in place.
        Of an encoder also what is in no block: twice until the first block has arrived, and once
        for as long as it runs.
        """
        block = self._largest_block
        if self.denoises:
            return 3 * block
        return self._outside + max(self._outside + block, 3 * block)

    @property
    def uncut(self) -> int:
        """Bytes of weights that stand on a device at a time until ranks have cut them: a block, or
        what is in none."""
        return max(self._largest_block, self._outside)

    @property
    def _largest_block(self) -> int:
        sizes = (sum(x.nbytes for x in block.parameters()) for block in blocks_of(self.module))
        return max(sizes, default=0)

    @property
    def _outside(self) -> int:
        return sum(x.nbytes for x in outside_of_blocks(self.module))

    @property
    def largest_group(self) -> int:
        """Bytes that stand on the device at a time where groups of layers come and go.

        Of a transformer two blocks, one that is computed and one that arrives, beside what is in no
        block; of other networks the largest layer.
        """
        if self.denoises:
            blocks = longest_list(self.module)
            sizes = [size_of(block) for block in blocks]
            return self.bytes - sum(sizes) + 2 * max(sizes)
        return max(
            sum(x.nbytes for x in module.parameters(recurse=False))
            for module in self.module.modules()
        )


def networks_of(job: Job) -> dict[str, Network]:
    """The networks of a job's model by the names of its pipeline.

    Raises:
        CheckpointError: for one that cannot be built from its config.
    """
    found = {}
    transformers = job.adapter.transformers(job.skeleton)
    for name, cls in networks(job.source):
        known = getattr(job.skeleton, name, None)
        module = (
            copied(known)
            if isinstance(known, nn.Module)
            else unfilled_network(job.source, name, cls)
        )
        _cast(module, dtype_of(name, job.adapter, job.dtype))
        found[name] = Network(module, name in ENCODERS, name in transformers)
    return found


def missing_networks(job: Job) -> list[str]:
    """Networks of which there are not even configs: a plan can be made without encoders."""
    return [name for name, _ in networks(job.source) if not (job.source.folder / name).is_dir()]


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Weights in the dtype that they are loaded in; some stay in float32.

    diffusers keeps those that a class names, transformers those of a plan: its later versions make
    one for a dtype, and the first of series 5 has the same for all.
    """
    if hasattr(module, "load_config"):
        keeps = {*(getattr(module, "_keep_in_fp32_modules", None) or ())}
    else:
        plan_for = getattr(module, "_get_dtype_plan", None)
        keeps = {*(getattr(module, "dtype_plan", {}) if plan_for is None else plan_for(dtype))}
    for name, parameter in module.named_parameters():
        kept = keeps & {*name.split(".")}
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
        parameter.requires_grad_(False)


def size_of(module: nn.Module) -> int:
    """Bytes of all weights and buffers, those that are shared once."""
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def longest_list(module: nn.Module) -> nn.ModuleList:
    """The blocks that a network repeats most."""
    lists = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return max(lists, key=len)


def filled(found: Mapping[str, Network]) -> dict[str, nn.Module]:
    """Copies of the networks on the CPU, to run; call it under a mode of fake tensors.

    Transformers have a few of their blocks.
    """
    copies = {}
    for name, network in found.items():
        copies[name] = copied(network.module, "cpu")
        if network.denoises:
            del longest_list(copies[name])[LAYERS_RUN:]
    return copies


def copied(module: nn.Module, device: str = "meta") -> nn.Module:
    """A network of the same classes, shapes and dtypes, without values."""
    twin = meta_twin(module)
    for own, copy in zip(module.modules(), twin.modules(), strict=True):
        for name, weight in own._parameters.items():
            if weight is not None:
                empty = torch.empty_like(weight, device=device)
                copy._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in own._buffers.items():
            if buffer is not None:
                copy._buffers[name] = torch.empty_like(buffer, device=device)
    return twin
