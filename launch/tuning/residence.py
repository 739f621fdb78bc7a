"""Networks leave the device when their work in a video is over, so that what comes next has room.

Text and image encoders are done before the first denoising step, transformers before the VAE
decodes. In the last video of a job they give their memory back; in a list they wait in the host's
memory and come back for the next video, which costs seconds. A rank's part of one that ranks share
is small, and stays till the last. Offloading moves networks by itself.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lvsa.adapters.install.sharded import is_sharded
from lvsa.launch.tuning.sharding import drop


class Residence:
    """Which networks of a pipeline are on its device, from one video to the next.

    Args:
        pipe: with its networks on the device.
        device: of this rank.
        offloaded: whether offloading moves the networks: then nothing is done here.
    """

    def __init__(self, pipe: Any, device: torch.device, offloaded: bool) -> None:
        self.pipe, self.device, self.offloaded = pipe, device, offloaded
        self._waiting: dict[str, nn.Module] = {}

    def come_back(self) -> None:
        """Brings the networks that wait in the host's memory back to the device."""
        while self._waiting:
            name, network = self._waiting.popitem()
            # Not setattr, here and below: pipelines write what they are given into their config.
            object.__setattr__(self.pipe, name, network.to(self.device))

    def leave(self, names: Iterable[str], for_good: bool) -> None:
        """Takes networks off the device, and out of the pipeline, whose attributes are None then.

        Args:
            names: their attributes; those that the pipeline has not are left out.
            for_good: whether no other video needs them. Then their memory is free whoever still
                refers to them; else they wait in the host's memory.
        """
        if self.offloaded:
            return
        for name in names:
            network = getattr(self.pipe, name, None)
            if network is None or (is_sharded(network) and not for_good):
                continue
            object.__setattr__(self.pipe, name, None)
            if is_sharded(network):
                drop(network)
            elif for_good:
                network.to("meta")
            else:
                self._waiting[name] = network.to("cpu")
        # The allocator keeps what is freed in pieces of the size that it had.
        empty_cache = getattr(torch.get_device_module(self.device), "empty_cache", None)
        if empty_cache is not None:
            empty_cache()


@contextmanager
def before_denoising(transformers: Iterable[nn.Module], then: Callable[[], None]) -> Iterator[None]:
    """Calls something once, right before the first forward of any of these transformers.

    By then a pipeline has encoded all of its inputs, whatever the order in which it does so.
    """
    over = False

    @torch.compiler.disable
    def first_forward(*_: Any) -> None:
        nonlocal over
        if not over:
            over = True
            then()

    with ExitStack() as stack:
        for transformer in transformers:
            handle = transformer.register_forward_pre_hook(first_forward)
            stack.callback(handle.remove)
        yield
