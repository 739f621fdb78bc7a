"""KV exchanges: how the keys and values that a rank attends come to it.

An exchange is a stream of blocks: first what is here, then what arrives. All of them compute the
same attention; they differ in what travels and when.
"""

from lvsa.errors import LVSAError
from lvsa.exchange.all_gather import AllGather
from lvsa.exchange.base import Exchange, ExchangePlan, KVBlock, KVBlockPlan
from lvsa.exchange.needed import Needed
from lvsa.exchange.ring import Ring

EXCHANGES: dict[str, type[Exchange]] = {cls.name: cls for cls in (AllGather, Ring, Needed)}


def get_exchange(name: str) -> type[Exchange]:
    """An exchange by name; an unknown name lists the known ones."""
    if name not in EXCHANGES:
        raise LVSAError(f"unknown exchange {name!r}; known: {', '.join(EXCHANGES)}")
    return EXCHANGES[name]


__all__ = [
    "EXCHANGES",
    "AllGather",
    "Exchange",
    "ExchangePlan",
    "KVBlock",
    "KVBlockPlan",
    "Needed",
    "Ring",
    "get_exchange",
]
