"""Ports for processes that meet on this host."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address on which nobody listens at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
