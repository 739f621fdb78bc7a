"""Both passes of classifier-free guidance at the same time, each on ranks of its own.

Pipelines are left as they are. Those that call their transformer twice a step (Wan, HunyuanVideo
1.5) do so on every rank, but a rank computes one of the two calls. The other returns at once, with
a tensor that is filled when the second call ends: what a pipeline does with the results comes after
both. Those that put both passes into one batch (CogVideoX) have it cut in two.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lvsa.adapters.base import GuidanceStyle
from lvsa.comm import gathered, group_rank
from lvsa.errors import LVSAError
from lvsa.mesh import PASSES
from lvsa.wrapping import Undo, wrap_method


class GuidanceParallel:
    """Shares the passes of a pipeline's transformers among two ranks.

    Args:
        transformers: whose forwards are shared; they take ``hidden_states``, with the batch in
            dimension 0, and return ``sample``.
        style: whether passes are calls of their own, or halves of a batch.
        group: two ranks with the same tokens; the first has the pass that comes first.
    """

    def __init__(
        self, transformers: Mapping[str, nn.Module], style: GuidanceStyle, group: dist.ProcessGroup
    ) -> None:
        self.group, self.rank = group, group_rank(group)
        self._calls = 0
        self._first: Tensor | None = None
        forward = self._one_of_two if style == "calls" else self._half
        self._undo: list[Undo] = [
            wrap_method(model, "forward", partial(forward, model, model.forward))
            for model in transformers.values()
        ]

    def remove(self) -> None:
        """Gives the transformers their own forwards back; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def restart(self, step: int) -> None:
        """Begins anew with a generation: an earlier one may have ended in the middle of a step."""
        if step == 0:
            self._calls, self._first = 0, None

    def check_complete(self, step: int, latents: Any) -> None:
        """Holds a step that ends against what it needs: as many calls as there are passes.

        Raises:
            LVSAError: where a pass is missing; the pipeline has used its empty result already.
        """
        calls, self._calls = self._calls, 0
        if calls % PASSES:
            self._first = None
            raise LVSAError(
                f"guidance in parallel: a denoising step had {calls} pass(es), and there is a rank "
                f"for each of {PASSES}. Give a guidance scale above 1 in every step, or a mesh "
                "without guidance"
            )

    def _one_of_two(
        self, model: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One of the two calls of a step: computed here, or by the other rank."""
        turn = self._calls % PASSES
        self._calls += 1
        like = _output_like(model, _hidden_states(args, kwargs))
        if turn == self.rank:
            output = forward(*args, **kwargs)
            sample = output[0]
            _check_output(model, sample, like)
        else:
            sample = torch.empty_like(like, device=_hidden_states(args, kwargs).device)
            output = _wrapped(sample, kwargs)
        if turn == 0:
            self._first = sample
            return output
        first, self._first = self._first, None
        assert first is not None, "the second call of a step follows the first"
        mine = first if self.rank == 0 else sample
        everyone = self._gather(mine)
        first.copy_(everyone[0])
        sample.copy_(everyone[1])
        return output

    def _half(
        self, model: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One call of a step, of which this rank computes half of the batch."""
        batch = _hidden_states(args, kwargs).shape[0]
        self._calls += PASSES
        if batch % PASSES:
            raise LVSAError(
                f"guidance in parallel: the batch has {batch} element(s), which do not divide by "
                f"the {PASSES} passes. Give a guidance scale above 1, or a mesh without guidance"
            )

        def mine(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
                return value.chunk(PASSES)[self.rank]
            return value

        output = forward(*map(mine, args), **{key: mine(value) for key, value in kwargs.items()})
        return _wrapped(self._gather(output[0]).flatten(0, 1), kwargs)

    def _gather(self, mine: Tensor) -> Tensor:
        """``[2, …]``: what both ranks have."""
        return gathered(mine, self.group, "the guidance passes")


def _hidden_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden


def _output_like(model: nn.Module, hidden: Tensor) -> Tensor:
    """What the transformer makes of latents ``[B, C, T, H, W]``, without data."""
    config: Any = model.config
    channels = config.out_channels or config.in_channels
    shape = (hidden.shape[0], channels, *hidden.shape[2:])
    return torch.empty(shape, dtype=hidden.dtype, device="meta")


def _check_output(model: nn.Module, sample: Tensor, like: Tensor) -> None:
    """Stops where the other rank waits for another shape or dtype than this one sends."""
    if sample.shape != like.shape or sample.dtype != like.dtype:
        raise LVSAError(
            f"guidance in parallel: {type(model).__name__} gave {tuple(sample.shape)} in "
            f"{sample.dtype}; expected of its config and input: {tuple(like.shape)} in {like.dtype}"
        )


def _wrapped(sample: Tensor, kwargs: Mapping[str, Any]) -> Any:
    """The sample as a transformer of diffusers returns it."""
    if kwargs.get("return_dict", True):
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)
    return (sample,)
