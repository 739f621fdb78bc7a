"""A pipeline's denoising loop, followed from its scheduler, and taken up where it stopped.

Nothing of a pipeline's code is copied. It runs as always, but for the steps that were done before:
in those the transformers compute nothing, and each `scheduler.step` returns what the last of them
returned. With that one everything else that the loop remembers is put back, and the next step is
the real one. Whoever counts steps, as LVSA's clock does for the keyframes, counts those too.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from lvsa.errors import CheckpointError
from lvsa.launch.checkpoint.snapshot import attributes, random_states, restore, restore_random
from lvsa.launch.checkpoint.values import Attributes, Unsaveable
from lvsa.wrapping import wrap_method


@dataclass(frozen=True)
class LoopState:
    """A denoising loop after some of its steps.

    Args:
        steps: that have run.
        result: tensors that the last `scheduler.step` returned, the latents first.
        scheduler, guider: their attributes; None for a pipeline without a guider.
        random: states of random generators.
    """

    steps: int
    result: tuple[Tensor, ...]
    scheduler: Attributes
    guider: Attributes | None
    random: dict[str, Any]


class DenoisingLoop:
    """The loop of one call of a pipeline.

    Args:
        pipe: the pipeline; a session of LVSA comes after this, and counts its steps.
        transformers: that denoise.
        generators: that the call is given.
        device: where the pipeline computes.
        start: where to take it up; None to run it from the first step.
        listener: is given after each real step what makes the loop's state then, and the device.
    """

    def __init__(
        self,
        pipe: Any,
        transformers: Iterable[Any],
        generators: Iterable[torch.Generator],
        device: torch.device,
        start: LoopState | None = None,
        listener: Callable[[Callable[[], LoopState], torch.device], None] | None = None,
    ) -> None:
        self.pipe, self.transformers, self.device = pipe, list(transformers), device
        self.generators = list(generators)
        self.listener = listener
        self.first = 0 if start is None else start.steps
        """The first step that is computed, counted from 0."""
        self.steps = 0
        """Steps that are done."""
        self._start = start
        self._idle = ExitStack()
        self._followed = False

    @contextmanager
    def followed(self) -> Iterator["DenoisingLoop"]:
        """Follows the pipeline's scheduler while the context lasts.

        Raises:
            CheckpointError: where the loop ended before it came to the step to go on from.
        """
        scheduler = self.pipe.scheduler
        with ExitStack() as stack:
            stack.callback(self._idle.close)
            for name, wrap in (("set_timesteps", self._beginning), ("step", self._stepping)):
                stack.callback(wrap_method(scheduler, name, wrap(getattr(scheduler, name))))
            self._followed = True
            stack.callback(setattr, self, "_followed", False)
            yield self
        if self._start is not None:
            raise CheckpointError(
                f"the checkpoint is of step {self.first}, and the pipeline ended after "
                f"{self.steps}; --fresh begins anew"
            )

    def state(self, result: Any) -> LoopState:
        """The state after the step that has just run.

        Raises:
            Unsaveable: where the scheduler returns something else than a tuple of tensors.
        """
        if type(result) is not tuple or not all(isinstance(item, Tensor) for item in result):
            raise Unsaveable(
                f"{type(self.pipe.scheduler).__name__}.step returns a {type(result).__name__}, "
                "which cannot be saved: tuples of tensors can"
            )
        guider = getattr(self.pipe, "guider", None)
        return LoopState(
            steps=self.steps,
            result=result,
            scheduler=attributes(self.pipe.scheduler),
            guider=None if guider is None else attributes(guider),
            random=random_states(self.generators, self.device),
        )

    def _beginning(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(set_timesteps)
        def beginning(*args: Any, **kwargs: Any) -> Any:
            if self._followed:
                self.steps = 0
                if self._start is not None:
                    # Now, not earlier: over whatever else has been put on the transformers.
                    self._make_idle(self._start.result[0].shape[1:])
            return set_timesteps(*args, **kwargs)

        return beginning

    def _stepping(self, step: Callable[..., Any]) -> Callable[..., Any]:
        # Pipelines read the signature to learn what a scheduler takes: it must stay to be seen.
        @functools.wraps(step)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if not self._followed:
                return step(*args, **kwargs)
            if self._start is not None:
                self.steps += 1
                result = self._start.result
                if self.steps == self._start.steps:
                    self._arrive(self._start)
                return result
            result = step(*args, **kwargs)
            self.steps += 1
            if self.listener is not None:
                self.listener(functools.partial(self.state, result), self.device)
            return result

        return stepping

    def _make_idle(self, shape: torch.Size) -> None:
        """Has the transformers return zeros of the latents' shape ``[B, *shape]``, at no cost."""
        self._idle.close()
        for transformer in self.transformers:
            self._idle.callback(
                wrap_method(transformer, "forward", self._idling(transformer.forward, shape))
            )
            if "_compiled_call_impl" in vars(transformer):
                # What torch.compile made calls no `forward` that is put there now.
                uncompiled = transformer._call_impl
                self._idle.callback(wrap_method(transformer, "_compiled_call_impl", uncompiled))

    def _idling(self, forward: Callable[..., Any], shape: torch.Size) -> Callable[..., Any]:
        @functools.wraps(forward)
        def idling(*args: Any, **kwargs: Any) -> Any:
            if self._start is None:
                # Left behind under somebody else's wrapper.
                return forward(*args, **kwargs)
            hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            zeros = hidden.new_zeros(()).expand(hidden.shape[0], *shape)
            return_dict = kwargs.get("return_dict", True)
            return Transformer2DModelOutput(sample=zeros) if return_dict else (zeros,)

        return idling

    def _arrive(self, start: LoopState) -> None:
        """Puts back what the loop remembered; the next step is computed."""
        restore(self.pipe.scheduler, start.scheduler)
        if start.guider is not None:
            restore(self.pipe.guider, start.guider)
        restore_random(start.random, self.generators, self.device)
        self._start = None
        self._idle.close()
