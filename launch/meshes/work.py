"""What a model does beside the attention among video tokens, counted in forwards without weights.

That attention grows with the square of the tokens, all else with their number. Three forwards of
short videos on the meta device tell the two apart exactly.
"""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lvsa.cost import Load, Work
from lvsa.cp_plans import ModelPlan
from lvsa.cp_plans.trial import meta_twin
from lvsa.launch.job import Job
from lvsa.launch.tuning.sharding import blocks_of
from lvsa.mesh import PASSES
from lvsa.shards import FrameGrid

FRAMES = (1, 2, 3)
"""Latent frames of the forwards."""
SINGLE = torch.float32.itemsize
"""Bytes of a number in them; a real model's numbers have the size of its dtype."""


def work_of_job(job: Job) -> Work:
    """What the (first) transformer of a job does in a step."""
    work = work_of(
        job.transformer,
        job.adapter.model_plan(job.skeleton, job.transformer),
        job.grid,
        layers=job.layers,
        dtype=job.dtype,
        passes=PASSES if job.request.guidance > 1 else 1,
    )
    if not job.config.tuning.shard_weights:
        return work
    shared = sum(x.numel() for block in blocks_of(job.transformer) for x in block.parameters())
    return replace(work, shared=float(shared * job.dtype.itemsize))


def work_of(
    transformer: Any,
    plan: ModelPlan,
    grid: FrameGrid,
    *,
    layers: int,
    dtype: torch.dtype,
    passes: int,
) -> Work:
    """What a transformer of diffusers does in a step.

    Args:
        transformer: with weights or without.
        plan: that makes its inputs.
        grid: of a video's tokens; of any length.
        layers: attentions among video tokens in one forward.
        dtype: of its tensors.
        passes: of guidance.
    """
    known = _COUNTED.setdefault(transformer, {})
    size_of_frame = grid.rows, grid.columns
    if size_of_frame not in known:
        twin = meta_twin(transformer)
        known[size_of_frame] = [count(twin, plan, replace(grid, frames=n)) for n in FRAMES]
    counts = known[size_of_frame]
    P, size = grid.tokens_per_frame, dtype.itemsize / SINGLE
    flops = Growth.of([c.flops for c in counts], P)
    moved = Growth.of([c.bytes * size for c in counts], P)
    sample = Growth.of([c.sample * size for c in counts], P)
    return Work(
        heads=int(transformer.config.num_attention_heads),
        head_dim=int(transformer.config.attention_head_dim),
        layers=layers,
        dtype=dtype,
        passes=passes,
        token=Load(flops.slope, moved.slope),
        once=Load(flops.start, moved.start),
        launches=counts[0].launches,
        sample=sample.slope,
    )


@dataclass(frozen=True)
class Growth:
    """A parabola: ``start + slope · tokens + square · tokens²``."""

    start: float
    slope: float
    square: float

    @classmethod
    def of(cls, values: list[float], step: int) -> "Growth":
        """Through the values at one, two and three steps."""
        one, two, three = values
        second = three - 2 * two + one
        first = two - one - 1.5 * second
        return cls(one - first - second / 2, first / step, second / 2 / step**2)


@dataclass
class Count:
    """A forward.

    Args:
        flops: of matrix products, convolutions and attention.
        bytes: that all other operations read and write.
        launches: operations that are no views.
        sample: bytes of its result.
    """

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    sample: float = 0.0


# By transformer and size of a frame: a choice of meshes and its ranking ask for the same.
_COUNTED: WeakKeyDictionary[nn.Module, dict[tuple[int, int], list[Count]]] = WeakKeyDictionary()


def count(twin: nn.Module, plan: ModelPlan, grid: FrameGrid) -> Count:
    """What a forward on the meta device asks for.

    Args:
        twin: a transformer without weights.
        plan: that makes its inputs.
        grid: of the video's tokens.
    """
    found = Count()
    inputs = plan.inputs(twin, grid)
    with torch.no_grad(), torch.device("meta"), _Attention(found), _Operations(found):
        sample = twin(**inputs, return_dict=False)[0]
    found.sample = sample.numel() * sample.element_size()
    return found


class _Attention(TorchFunctionMode):
    """Counts attention where it is called; on the meta device it would become matrix products."""

    def __init__(self, found: Count) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        q, k, v = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        self.found.flops += 2 * q.numel() * k.shape[-2] * (1 + v.shape[-1] / q.shape[-1])
        self.found.launches += 1
        return q.new_empty((*q.shape[:-1], v.shape[-1]))


class _Operations(TorchDispatchMode):
    """Counts all other operations."""

    def __init__(self, found: Count) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        flops = flop_registry.get(function.overloadpacket)
        if flops is not None:
            self.found.flops += flops(*args, **(kwargs or {}), out_val=result)
            self.found.launches += 1
        elif not function.is_view and not _makes_room(function):
            moved = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.found.bytes += sum(x.numel() * x.element_size() for x in moved)
            self.found.launches += 1
        return result


def _makes_room(function: Any) -> bool:
    """Whether an operation only allocates, or is a view by another name."""
    name = function.overloadpacket.__name__
    return name.startswith(("empty", "new_empty")) or name == "_unsafe_view"
