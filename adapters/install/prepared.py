"""Pipelines that were prepared before LVSA: compiled transformers, and caches that skip blocks.

A cache that skips blocks by what it sees must come to one decision on all ranks: a rank that skips
leaves the others waiting in an exchange, or computes another video. diffusers' caches decide on
each rank by the tokens that it has. Here the numbers behind a decision are shared, so that all
ranks skip together, when one process would.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.hooks import ModelHook, StateManager
from diffusers.hooks.mag_cache import MagCacheHeadHook
from diffusers.hooks.sea_cache import SeaCacheLeaderBlockHook
from torch import Tensor, nn
from torch import distributed as dist

from lvsa.comm import gathered, group_size
from lvsa.errors import LVSAError
from lvsa.wrapping import Undo, wrap_method

# Methods by which diffusers' caches decide.
FIRST_BLOCK, SEA = "_should_compute_remaining_blocks", "resolve_gate"
# Hooks of diffusers' own context parallelism, which would cut the sequence a second time.
CUT_BY_DIFFUSERS = "cp_"


def forget_compiled(transformers: Iterable[nn.Module]) -> None:
    """Drops compiled code of these transformers, if there is any: it is made anew when it runs.

    torch.compile looks at a module's hooks when it compiles it and never again
    (``torch._dynamo.config.skip_nnmodule_hook_guards``): what was compiled before LVSA came, or
    with it, would run without it, or on with it.
    """
    if any(is_compiled(module) for root in transformers for module in root.modules()):
        torch.compiler.reset()


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called, or torch.compile put in the place of its forward."""
    return module._compiled_call_impl is not None or isinstance(
        module, torch._dynamo.eval_frame.OptimizedModule
    )


def hooks_of(transformer: nn.Module) -> Iterator[tuple[str, str, ModelHook]]:
    """Path of the module, name and hook, of all that diffusers has put on a transformer."""
    for path, module in transformer.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in ({} if registry is None else registry.hooks).items():
            yield path, name, hook


def check_hooks(transformers: dict[str, nn.Module], world: int) -> None:
    """Stops for what diffusers has put on a transformer that cannot work beside LVSA.

    Raises:
        LVSAError: for diffusers' own context parallelism, or a cache that measures on one rank.
    """
    for attribute, transformer in transformers.items():
        for path, name, hook in hooks_of(transformer):
            where = f"{attribute}.{path}" if path else attribute
            if name.startswith(CUT_BY_DIFFUSERS):
                raise LVSAError(
                    f"{where} is cut among ranks by diffusers already ({name}), and LVSA would cut "
                    "it again: leave enable_parallelism out, LVSA does both"
                )
            if isinstance(hook, MagCacheHeadHook) and hook.config.calibrate and world > 1:
                raise LVSAError(
                    f"MagCache on {attribute} is to be calibrated (calibrate=True) on {world} "
                    "ranks, each of which would measure its own tokens alone: calibrate it on 1"
                )


def forget_cached(transformers: Iterable[nn.Module], step: int) -> None:
    """Empties the transformers' caches before the first step of a generation.

    Pipelines do so at the end of one, which it may not reach.
    """
    if step == 0:
        for transformer in transformers:
            registry: Any = getattr(transformer, "_diffusers_hook", None)
            if registry is not None:
                registry.reset_stateful_hooks()


def share_decisions(transformer: nn.Module, group: dist.ProcessGroup | None) -> list[Undo]:
    """Makes the caches of a transformer decide for all ranks at once.

    FirstBlockCache compares tokens, of which a rank has a part; SeaCache compares latents, which
    ranks of different devices might round differently. diffusers' others go by the step alone.

    Returns:
        What leaves each of them to itself again; empty where all of them share already.
    """
    undo = []
    for _, _, hook in hooks_of(transformer):
        if isinstance(hook, FBCHeadBlockHook) and not _shares(hook, FIRST_BLOCK):
            decide = partial(_first_block_changed, hook, group)
            undo.append(_replace(hook, FIRST_BLOCK, decide))
        if isinstance(hook, SeaCacheLeaderBlockHook) and not _shares(hook.shared_state, SEA):
            shared = hook.shared_state
            decide = partial(_like_first_rank, shared.resolve_gate, group)
            undo.append(_replace(shared, SEA, decide))
    return undo


def _shares(owner: Any, method: str) -> bool:
    return getattr(vars(owner).get(method), "shared", False)


def _replace(owner: Any, method: str, decide: Callable[..., bool]) -> Undo:
    @torch.compiler.disable
    def shared(*args: Any) -> bool:
        return decide(*args)

    shared.shared = True
    return wrap_method(owner, method, shared)


def _first_block_changed(hook: Any, group: dist.ProcessGroup | None, residual_BLC: Tensor) -> bool:
    """Whether the first block's residual has changed by more than the threshold, over all tokens.

    Ranks hold equally many, so the mean of their means is the mean of all; in float32, whatever
    the dtype, so that its rounding does not depend on the number of ranks.
    """
    manager: StateManager = hook.state_manager
    before_BLC = manager.get_state().head_block_residual
    if before_BLC is None:
        return True
    sizes = ((residual_BLC - before_BLC).abs(), before_BLC.abs())
    mine = torch.stack([x.mean(dtype=torch.float32) for x in sizes])
    change, size = _of_all(mine, group).mean(0).tolist()
    return bool(change > hook.threshold * size)


def _like_first_rank(
    resolve: Callable[..., bool],
    group: dist.ProcessGroup | None,
    state: Any,
    metadata: Any,
    indicator: list[Tensor] | None,
    config: Any,
) -> bool:
    """The first rank's decision, and the distance that it has added up for the next."""
    compute = resolve(state, metadata, indicator, config)
    device = None if indicator is None else indicator[0].device
    mine = torch.tensor([compute, state.accumulated_distance], dtype=torch.float32, device=device)
    first, distance = _of_all(mine, group)[0].tolist()
    state.gate_should_compute, state.accumulated_distance = bool(first), distance
    return bool(first)


def _of_all(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``[N, n]``, the numbers of every rank in rank order: the same bits everywhere."""
    if group_size(group) == 1:
        return mine[None].cpu()
    return gathered(mine, group, "decisions of a step cache").cpu()
