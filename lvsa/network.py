"""What transfers among the ranks of some nodes would take, on paper."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvsa.hardware import Hardware
from lvsa.pattern import Ints

Floats = NDArray[np.float64]

PEERS_AT_ONCE = 8
"""Transfers of a rank with others that are under way at a time; assumed."""


@dataclass(frozen=True)
class Transfer:
    """What a transfer takes, each ``[world]``.

    Args:
        seconds: until a rank has sent and received.
        inside, between: bytes that it receives.
    """

    seconds: Floats
    inside: Floats
    between: Floats


@dataclass(frozen=True)
class Network:
    """Ranks on their nodes, which are filled one after the other."""

    hardware: Hardware
    world: int

    def transfer(
        self, sender: Ints, receiver: Ints, amount: Floats | Ints, hops: int = 1
    ) -> Transfer:
        """What transfers that begin together take.

        Args:
            sender, receiver: ``[n]``, ranks of the world.
            amount: ``[n]``, bytes from the one to the other.
            hops: of a ring that they are, in which everything passes every rank; libraries spread
                rings over all network adapters of their ranks.
        """
        node = np.arange(self.world) // self.hardware.per_node
        here = node[sender] == node[receiver]
        involved = np.union1d(sender, receiver)
        seconds, received = np.zeros(self.world), []
        for inside, chosen in ((True, here), (False, ~here)):
            link = self.hardware.inside if inside else self.hardware.between
            s, r, b = sender[chosen], receiver[chosen], amount[chosen]
            received.append(np.bincount(r, b, self.world).astype(np.float64))
            spread = hops > 1 and not inside and not link.shared
            owner = node if link.shared or spread else np.arange(self.world)
            load = np.maximum(*(np.bincount(owner[x], b, self.world) for x in (s, r)))
            if spread:
                load = load / np.maximum(1, np.bincount(node[involved], minlength=self.world))
            messages = np.maximum(*(np.bincount(x, minlength=self.world) for x in (s, r)))
            turns = np.maximum(hops if inside else 1, -(-messages // PEERS_AT_ONCE))
            busy = load[owner] / link.bandwidth + turns * link.latency
            seconds = np.where(messages > 0, np.maximum(seconds, busy), seconds)
        if hops > 1:
            seconds[involved] = seconds.max()
        return Transfer(seconds, *received)
