"""Messages between a rank, its guard and the guard of the first rank: JSON objects, one a line."""

import json
import socket
from contextlib import suppress
from typing import Any

# No message is that long; what is comes from somebody else.
LONGEST = 1 << 20
# With these a node that lost its power is noticed in about 20 seconds, whatever its processes did.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


class Lines:
    """A connected socket that carries messages.

    Args:
        connection: a stream socket; closed with this.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def fileno(self) -> int:
        """For `select`."""
        return self.connection.fileno()

    def send(self, **message: Any) -> None:
        """Sends a message; one to somebody who is gone is lost, which its reader will notice."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come, perhaps none yet; None at the end of the connection."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > LONGEST:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()


def kept_alive(connection: socket.socket) -> socket.socket:
    """The same TCP connection, which breaks by itself when the other host has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        # Each system has its own selection of these.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
