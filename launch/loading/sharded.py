"""A model's weights in parts, each on the rank that keeps it; one rank reads them for all.

The first rank of a job has the networks in its host's memory, LoRAs merged into them. The others
build them of their configs. Block by block the weights come to every rank's device, where FSDP
takes its part of them: no device ever holds more than its parts and one block, or what is in none.
"""

from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from lvsa.adapters.install.replication import share
from lvsa.comm import wait
from lvsa.launch.job import Job, Model
from lvsa.launch.loading.lora import merge_loras
from lvsa.launch.loading.unfilled import unfilled_network
from lvsa.launch.loading.weights import ENCODERS, dtype_of, load_network, load_pipeline, networks
from lvsa.launch.processes.runtime import Runtime
from lvsa.launch.tuning.prepare import prepare
from lvsa.launch.tuning.sharding import shard


def load_sharded(job: Job, model: Model, runtime: Runtime, team: Runtime) -> Any:
    """The pipeline of a job, whose transformers and encoders are shared by the ranks of a video.

    Args:
        job: on several ranks.
        model: with the LoRAs to merge.
        runtime: this process among those of the job, all of which come here together.
        team: this process among those that make the same video, at least two.

    Raises:
        SharedError: on every rank, for weights that cannot be loaded, or a LoRA that cannot be
            merged.
    """
    options, device = job.config.model, runtime.device
    denoising = job.adapter.transformers(job.skeleton)
    cut = {n: cls for n, cls in networks(job.source) if n in denoising or n in ENCODERS}

    def whole_networks() -> dict[str, nn.Module]:
        whole = {
            name: load_network(
                job.source,
                name,
                dtype_of(name, job.adapter, job.dtype),
                options.variant,
                options.allow_pickle,
            )
            for name in cut
        }
        merge_loras(model.loras, job.skeleton, {name: whole[name] for name in denoising})
        return whole

    def unfilled_pipeline() -> Any:
        others = {
            name: unfilled_network(job.source, name, cls, dtypes[name]) for name, cls in cut.items()
        }
        pipe = load_pipeline(
            job.source,
            job.dtype,
            job.adapter,
            variant=options.variant,
            allow_pickle=options.allow_pickle,
            device=device,
            others=others,
        )
        # Before they are cut: caches and the compiler put hooks on blocks, FSDP's come around them.
        prepare(pipe, job.config.tuning, (), job.adapter.transformers(pipe), None)
        return pipe

    whole = runtime.on_first(whole_networks)
    dtypes = runtime.from_first({n: _dtypes(network) for n, network in (whole or {}).items()})
    pipe = runtime.together(unfilled_pipeline)
    for name in cut:
        source = whole.pop(name) if whole is not None else None
        _cut(getattr(pipe, name), source, runtime, team, whole_rest=name in denoising)
    return pipe.to(device)


def _cut(
    network: nn.Module,
    source: nn.Module | None,
    runtime: Runtime,
    team: Runtime,
    whole_rest: bool,
) -> None:
    """Fills a network with the weights of the first rank, and cuts it among the ranks of a video.

    Args:
        network: with its parameters on the meta device.
        source: the same with its weights; on the first rank.
        whole_rest: as `shard` takes ``whole``.
    """
    group, device = runtime.group, runtime.device
    assert group is not None and team.group is not None
    names = {parameter: name for name, parameter in network.named_parameters()}
    # Of a weight that modules share there is one.
    filled: dict[nn.Parameter, nn.Parameter] = {}

    @torch.no_grad()
    def fill(part: nn.Module) -> None:
        for module in part.modules():
            for key, empty in module._parameters.items():
                if empty is None or not empty.is_meta:
                    continue
                if empty not in filled:
                    name = names[empty]
                    weight = torch.empty_like(empty, device=device)
                    if source is not None:
                        weight.copy_(source.get_parameter(name))
                    work = dist.broadcast(weight, group=group, group_src=0, async_op=True)
                    wait(work, f"broadcast of the weights {name}", group)
                    filled[empty] = nn.Parameter(weight, requires_grad=False)
                module._parameters[key] = filled[empty]
        # FSDP takes its part of them, and then they must go.
        filled.clear()

    shard(network, team.group, device.type, whole=whole_rest, before=fill)
    # Whatever is not saved with the weights, like frequencies, as the first rank has made it.
    buffers = share(None if source is None else dict(source.named_buffers()), group, device)
    for name, buffer in buffers.items():
        path, _, key = name.rpartition(".")
        network.get_submodule(path)._buffers[key] = buffer.to(device)


def _dtypes(network: nn.Module) -> dict[str, torch.dtype]:
    return {name: x.dtype for name, x in network.named_parameters(remove_duplicate=False)}
