"""Local ports that no other program is likely to take."""

import random
import socket

_drawn = random.SystemRandom()


def free_port() -> int:
    """Return a port on which nobody listens, below those that Linux assigns by itself.

    A port that Linux assigned may be taken again before it is used: by a connection of Ray, for instance, or,
    while nobody listens, by a client that tries to connect to it and thereby connects to itself.
    """
    while True:
        port = _drawn.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
