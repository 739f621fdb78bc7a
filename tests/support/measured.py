"""Memory that a generation takes by its phases, as PyTorch's profiler sees the CPU's allocator."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from lvsa.launch import finish, generate
from lvsa.launch.rehearsal.ledger import Ledger
from tests.support.launched import launched

DENOISING, DECODING = "phase: denoising", "phase: decoding"
KERNELS = (
    "aten::convolution",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_fused_rms_norm",
)
"""Operators that allocate for themselves."""


def measured(rank: int, world: int, arguments: list[str]) -> dict[str, int]:
    """Most bytes that stood at once in each phase of a video of the launcher, without weights."""
    make, decode = generate.make_video, finish.decode

    def marked(loaded: Any, job: Any, *others: Any) -> Any:
        for transformer in job.adapter.transformers(loaded.pipe).values():
            transformer.register_forward_pre_hook(lambda *_: mark(DENOISING))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            frames = make(loaded, job, *others)
        profiles.append(profiler)
        return frames

    def decoding(*given: Any) -> Any:
        mark(DECODING)
        return decode(*given)

    profiles: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_video", marked)
        patch.setattr(finish, "decode", decoding)
        launched(rank, world, arguments)
    return peaks(profiles[0].profiler.kineto_results.experimental_event_tree())


def counted(rank: int, world: int, arguments: list[str]) -> int:
    """Most bytes of tensors at once from a rank's first denoising step to its end.

    The profiler does not see what gloo's own threads free.
    """
    make, ledger = generate.make_video, Ledger()

    def watched(loaded: Any, job: Any, *others: Any) -> Any:
        (transformer,) = job.adapter.transformers(loaded.pipe).values()

        def begins(*_: Any) -> None:
            handle.remove()
            ledger.restart()

        handle = transformer.register_forward_pre_hook(begins)
        with ledger:
            return make(loaded, job, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "make_video", watched)
        launched(rank, world, arguments)
    return ledger.peak


def mark(phase: str) -> None:
    with record_function(phase):
        pass


def peaks(roots: Any) -> dict[str, int]:
    """The most that stood at once by phase, from a trace's tree of events.

    What a kernel allocates for itself and gives back when it ends, like a convolution's columns,
    is left out: it differs from device to device.
    """
    found = sorted(_walk(roots, None), key=lambda step: step[0])
    made: dict[int, tuple[int, Any]] = {}
    own: set[int] = set()
    for i, (_, kernel, event) in enumerate(found):
        if isinstance(event, str):
            continue
        if event.alloc_size > 0:
            made[event.ptr] = i, kernel
        elif event.ptr in made:
            start, maker = made.pop(event.ptr)
            if maker is not None and maker == kernel:
                own |= {start, i}
        else:
            own.add(i)  # weights that leave
    phase, now, most = "encoding", 0, {"encoding": 0}
    for i, (_, _, event) in enumerate(found):
        if isinstance(event, str):
            if event != phase:
                phase = event
                most[phase] = now
        elif i not in own:
            now += event.alloc_size
            most[phase] = max(most[phase], now)
    return {name.removeprefix("phase: "): n for name, n in most.items()}


def _walk(nodes: Any, kernel: Any) -> Iterator[tuple[int, Any, Any]]:
    """Time, identity of the kernel around it if there is one, and each allocation or mark."""
    for node in nodes:
        if node.name == "[memory]":
            yield node.start_time_ns, kernel, node.extra_fields
        elif node.name in (DENOISING, DECODING):
            yield node.start_time_ns, kernel, node.name
        yield from _walk(node.children, node.id if node.name in KERNELS else kernel)
