"""One rank's forward of a transformer on a GPU that is not there, at full size."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from lvsa.adapters import get_adapter
from lvsa.adapters.base import ModelAdapter
from lvsa.attention import LVSAttention
from lvsa.launch.rehearsal.ranks import fake_ranks
from lvsa.pattern import Pattern
from lvsa.processor import LVSAProcessor
from lvsa.shards import FrameGrid
from lvsa.studies.bench.fake_gpu import fake_gpu


@dataclass(frozen=True)
class Forward:
    """A transformer with LVSA on it, cut for one rank, and arguments for its forward."""

    transformer: nn.Module
    adapter: ModelAdapter
    attention: LVSAttention
    inputs: dict[str, Any]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks whose attention is over video."""
        paths = [path for path, _ in self.adapter.attention_modules(self.transformer)]
        return [self.transformer.get_submodule(path.rpartition(".")[0]) for path in paths]

    def __call__(self) -> Any:
        with torch.no_grad():
            return self.transformer(**self.inputs, return_dict=False)[0]


@contextmanager
def fake_forward(
    transformer: nn.Module,
    adapter: str | ModelAdapter,
    pattern: Pattern,
    grid: FrameGrid,
    *,
    rank: int = 0,
    world: int = 1,
    exchange: str = "needed",
    backend: str = "auto",
    dtype: torch.dtype = torch.bfloat16,
    capability: tuple[int, int] = (9, 0),
) -> Iterator[Forward]:
    """A block with a fake GPU, in which one rank of many may call a transformer.

    Args:
        transformer: on the meta device; it goes to the fake GPU.
        adapter: the model family, or the name of one.
        pattern, grid: of the video.
        rank, world: this rank among how many.
        exchange, backend: names.
        dtype: of the transformer's inputs.
        capability: compute capability of the GPU.
    """
    adapter = adapter if isinstance(adapter, ModelAdapter) else get_adapter(adapter)
    pipe = SimpleNamespace(transformer=transformer, config=SimpleNamespace())
    plan = adapter.model_plan(pipe, transformer)
    shapes = plan.inputs(transformer, grid)
    with ExitStack() as stack:
        group = stack.enter_context(fake_ranks(rank, world)) if world > 1 else None
        mesh = init_device_mesh("cpu", (world,)) if world > 1 else None
        stack.enter_context(fake_gpu(capability))
        transformer.to_empty(device="cuda")
        attention = LVSAttention(
            pattern, grid, group=group, exchange=exchange, backend=backend, device="cuda"
        )
        if mesh is not None:
            adapter.setup_context_parallel(transformer, world, mesh=mesh, plan=plan)
        adapter.install_processor(pipe, LVSAProcessor(adapter, attention))
        texts = TEXT_TOKENS if "encoder_hidden_states_2" in shapes else {}
        inputs: dict[str, Any] = {
            name: None if x is None else _on_gpu(x, dtype, texts.get(name))
            for name, x in shapes.items()
        }
        inputs |= _as_pipelines_give_them(transformer, grid)
        yield Forward(transformer, adapter, attention, inputs)


# What HunyuanVideo's pipeline gives, where a plan's trial is content with less.
TEXT_TOKENS = {
    "encoder_hidden_states": 1000,
    "encoder_attention_mask": 1000,
    "encoder_hidden_states_2": 256,
    "encoder_attention_mask_2": 256,
    "image_embeds": 729,
}


def _on_gpu(x: Tensor, dtype: torch.dtype, text: int | None) -> Tensor:
    shape = x.shape if text is None else (x.shape[0], text, *x.shape[2:])
    return torch.empty(shape, dtype=dtype if x.is_floating_point() else x.dtype, device="cuda")


def _as_pipelines_give_them(transformer: Any, grid: FrameGrid) -> dict[str, Any]:
    """Arguments that a plan's trial does without: tables that the pipeline makes."""
    if not getattr(transformer.config, "use_rotary_positional_embeddings", False):
        return {}
    table = grid.tokens, transformer.config.attention_head_dim
    return {"image_rotary_emb": tuple(torch.empty(table, device="cuda") for _ in range(2))}
