"""A process that imports libraries once, and is forked for all others.

A Ray worker imports torch and the model libraries before it does anything, which takes ten seconds of a core.
Here one process does it for all workers while Ray starts:

1. `fork_server` starts it. It listens on a socket from the first moment, and imports the modules that it was
   given. None of these may import Ray or start a thread that a fork needs.
2. Ray starts a worker by the command line of `forked_python` instead of Python's. That program (`client`)
   sends its arguments, environment and open files, and waits.
3. The server forks. The child takes on what was sent and runs the worker's script. When it ends, the client
   ends in the same way; when the client is killed, the server kills the child.

To Ray the client is the worker: it has the process id that Ray knows, and its process group is the child's.
The server ends when the process that started it does.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from beamclip.child import start_module
from beamclip.forking import client

ARENAS = "MALLOC_ARENA_MAX"
"""Variable that glibc reads only when a process starts, so forks begin with the server's value."""
_SOCKET = "socket"
_SHORT_FOLDER = "/tmp"
_MOST_SOCKET_BYTES = 107
"""Longest path of a Unix socket, bytes."""


@contextlib.contextmanager
def fork_server(modules: tuple[str, ...]) -> Iterator[str]:
    """Run a server that imports `modules`; yields the command line that starts its forks.

    The command line takes the place of Python's, before a script and its arguments. Without the server it
    still works, as slowly as Python.
    """
    with tempfile.TemporaryDirectory(prefix="beamclip-fork-", dir=_folder()) as folder:
        address = f"{folder}/{_SOCKET}"
        # Bound here: workers may ask before the server is up.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            # A process group of its own keeps Ctrl-C away; the same session lets forks join workers' groups.
            server = start_module(
                "beamclip.forking.server",
                str(listener.fileno()),
                *modules,
                environment={ARENAS: "1"},
                start_new_session=False,
                process_group=0,
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
            )
        try:
            yield shlex.join([sys.executable, "-I", "-S", str(Path(client.__file__)), address])
        finally:
            # Killed, since it may still be importing; its forks have ended by now.
            server.kill()
            server.wait()


def _folder() -> str | None:
    longest = Path(tempfile.gettempdir(), "beamclip-fork-12345678", _SOCKET)
    return _SHORT_FOLDER if len(os.fsencode(longest)) > _MOST_SOCKET_BYTES else None
