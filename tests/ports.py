"""An address on this machine that nobody else comes by."""

import random
import socket

_drawn = random.SystemRandom()


def free_port() -> int:
    """A port that nobody listens on, below those that Linux hands out by itself.

    One of those may be taken by the time it is wanted: by a connection of Ray's, say, or, as long as nobody
    listens, by a client's own attempt to connect, which then meets itself.
    """
    while True:
        port = _drawn.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
