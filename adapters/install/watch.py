"""Watches a pipeline at work: its steps, its videos' sizes, and that nothing was exchanged in it.

Once a generation, before anything is cut, ranks hold their inputs against one another: ranks that
drew different noise, or encoded the prompt to different bits, would each denoise its part of
another video.
"""

import functools
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lvsa.adapters.install.grids import VideoGrids, described
from lvsa.adapters.install.prepared import forget_cached, share_decisions
from lvsa.adapters.install.session import LVSASession
from lvsa.comm import check_agreement, check_replicated
from lvsa.errors import LVSAError
from lvsa.wrapping import wrap_method


class Watch:
    """The hooks of a session on its pipeline. They leave with the session.

    Args:
        pipe: the pipeline.
        session: LVSA on it.
        grids: is told the grid of every forward.
    """

    def __init__(self, pipe: Any, session: LVSASession, grids: VideoGrids) -> None:
        self.pipe, self.session, self.grids = pipe, session, grids
        session.undo_later(session.clock.detach)
        session.clock.attach(pipe.scheduler)
        session.clock.guards.append(self.check_transformers)
        session.clock.results.append(self.check_latents)
        session.clock.listeners.append(partial(forget_cached, session.transformers.values()))
        # The result of the last step may still be on its way from the device.
        session.undo_later(session.finite.finish)
        for transformer in session.transformers.values():
            hook = ForwardHook(self, transformer)
            handle = transformer.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
            session.undo_later(handle.remove)
        if hasattr(pipe, "progress_bar"):
            # Every loop of diffusers' pipelines begins with it: the one place to see that
            # scheduler and transformer were exchanged both.
            session.undo_later(wrap_method(pipe, "progress_bar", self._guarded(pipe.progress_bar)))

    def check_transformers(self) -> None:
        """Stops where the pipeline has another transformer than LVSA was installed on.

        Raises:
            LVSAError: it would run dense without a word.
        """
        now = self.session.adapter.transformers(self.pipe)
        for name in {**now, **self.session.transformers}:
            if now.get(name) is not self.session.transformers.get(name):
                raise LVSAError(
                    f"{name} of {type(self.pipe).__name__} was exchanged after LVSA was enabled, "
                    "and would run without it. Exchange, wrap or compile it first, then enable LVSA"
                )

    def check_latents(self, step: int, latents: Any) -> None:
        """Stops where denoising has left the numbers, without waiting for the device.

        Raises:
            NonFiniteError: naming the step and the dtype.
        """
        if step == 0:
            self.session.finite.forget()
        if isinstance(latents, Tensor):
            self.session.finite.check(f"the latents after denoising step {step}", latents)

    def _guarded(self, progress_bar: Any) -> Any:
        @functools.wraps(progress_bar)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.check_transformers()
            self.session.clock.attach(self.pipe.scheduler)
            return progress_bar(*args, **kwargs)

        return guarded


class ForwardHook:
    """Runs before each forward of one transformer, on its arguments as the pipeline gives them."""

    def __init__(self, watch: Watch, transformer: nn.Module) -> None:
        self.watch, self.checked = watch, -1
        self.names = [*inspect.signature(type(transformer).forward).parameters][1:]

    @torch.compiler.disable
    def __call__(self, transformer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        pipe, session = self.watch.pipe, self.watch.session
        session.clock.attach(pipe.scheduler)
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        grid = session.adapter.read_grid(pipe, transformer, arguments)
        first = self.checked != session.clock.generations
        self.checked = session.clock.generations
        group = session.group
        if first:
            # Before a rank might refuse its grid alone, while the others wait for it.
            shown = None if grid is None else described(grid)
            check_agreement({"grid": shown}, group, what="sizes of the video")
        self.watch.grids.switch(grid)
        check_processors(session, transformer)
        if first:
            # Here, so that a cache may be enabled before LVSA or after.
            for undo in share_decisions(transformer, session.deciding):
                session.undo_later(undo)
            tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
            check_replicated(tensors, group)
        made_of = (arguments.get(name) for name in session.adapter.mask_arguments)
        session.masks.follow_from(x for x in made_of if isinstance(x, Tensor))
        if session.riflex is not None and grid is not None:
            kwargs = session.riflex.arguments(transformer, kwargs, grid.frames)
        return args, kwargs


def check_processors(session: LVSASession, transformer: nn.Module) -> None:
    """Stops where LVSA is not where it was put: another processor would run dense without a word.

    One of the user's own may stand in its place if it holds this session's engine.

    Raises:
        LVSAError: with the path of the first such module.
    """
    for path, attention in session.adapter.attention_modules(transformer):
        if not any(held is session.attention for held in vars(attention.processor).values()):
            raise LVSAError(
                f"{path} has a {type(attention.processor).__name__} in place of LVSA's: processors "
                "were set, or projections fused, after LVSA was enabled. Do that first"
            )
