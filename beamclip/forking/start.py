"""The process that imports libraries once, and forks the others.

A worker of Ray imports torch and the libraries of models before it does anything: ten seconds of a core, in
each of them. Here one process does, beside the start of Ray:

1. `fork_server` starts it. It listens on a socket from its first moment, and imports the modules that it was
   given, none of which may start a thread that the others need, or import Ray.
2. Ray starts a worker by the command line of `forked_python` instead of Python's. That program (`client`)
   sends its arguments, environment and open files, and waits.
3. The server forks. The child puts on what was sent and runs the worker's script. When it ends, the client
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
"""Variable that glibc reads when a process starts, and so for forks with the server's own value alone."""
_SOCKET = "socket"
_SHORT_FOLDER = "/tmp"
_MOST_SOCKET_BYTES = 107
"""Of the path of a Unix socket."""


@contextlib.contextmanager
def fork_server(modules: tuple[str, ...]) -> Iterator[str]:
    """A server that has imported modules, or is about to; gives the command line of its forks.

    The command line stands for Python's own, followed by a script and its arguments. It works without the
    server too, as slowly as Python does.
    """
    with tempfile.TemporaryDirectory(prefix="beamclip-fork-", dir=_folder()) as folder:
        address = f"{folder}/{_SOCKET}"
        # Bound here: workers may ask before the server is up.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            # A process group of its own keeps Ctrl-C away; in the same session it may join those of workers.
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
            # It may be in the midst of its imports, and no longer has forks.
            server.kill()
            server.wait()


def _folder() -> str | None:
    longest = Path(tempfile.gettempdir(), "beamclip-fork-12345678", _SOCKET)
    return _SHORT_FOLDER if len(os.fsencode(longest)) > _MOST_SOCKET_BYTES else None
