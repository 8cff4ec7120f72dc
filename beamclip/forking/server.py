"""The process of a fork server; see `start`."""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from beamclip.forking import client
from beamclip.forking.start import ARENAS

_M_ARENA_MAX = -8
_PR_SET_PDEATHSIG = 1
"""M_ARENA_MAX of glibc's malloc.h."""


@dataclass(frozen=True)
class Request:
    """What a client sends: the process that it stands in for."""

    arguments: list[str]
    """The script and its arguments."""
    environment: dict[str, str]
    folder: str
    files: list[int]
    """Descriptors of the client's open files, which come with the message."""


def serve(listener: socket.socket) -> tuple[Request, list[int]] | None:
    """Fork for clients until standard input ends.

    Returns:
        In a fork, the request to carry out and the files that came with it; in the server, None.
    """
    children = dict[int, socket.socket]()
    wakes, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    with listener, wakes, wake, selectors.DefaultSelector() as selector:
        for source in (listener, sys.stdin, wakes):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    asked = _asked(connection)
                    child = _fork() if asked else None
                    if asked and child == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        return asked
                    if asked and child:
                        for file in asked[1]:
                            os.close(file)
                        children[child] = connection
                        selector.register(connection, selectors.EVENT_READ, child)
                elif key.fileobj is wakes:
                    wakes.recv(4096)
                    _tell_of_ended(children, selector)
                elif children.pop(key.data, None):
                    # A client sends nothing after its request, so this is its end.
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(key.data, signal.SIGKILL)


def _tell_of_ended(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        connection = children.pop(child, None)
        if connection is not None:
            selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(struct.pack(client.CODE, os.waitstatus_to_exitcode(status)))
            connection.close()


def _asked(connection: socket.socket) -> tuple[Request, list[int]] | None:
    """Receive a client's request; None if the client was gone before it was complete."""
    try:
        return _receive(connection)
    except (OSError, ValueError, struct.error):
        connection.close()
        return None


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads; those of numpy's and Arrow's libraries survive a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    head, files, _, _ = socket.recv_fds(connection, struct.calcsize(client.SIZE), client.MOST_FILES)
    try:
        (size,) = struct.unpack(client.SIZE, head)
        body = b""
        while len(body) < size:
            more = connection.recv(size - len(body))
            if not more:
                raise ValueError("the client has ended")
            body += more
        return Request(**json.loads(body)), files
    except Exception:
        for file in files:
            os.close(file)
        raise


def become(request: Request, files: list[int]) -> None:
    """Turn this fork into the process that was requested, and run its script."""
    with contextlib.suppress(OSError):
        os.setpgid(0, int(request.environment.pop(client.GROUP)))
    _take_files(request.files, files)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    script = request.arguments[0]
    sys.argv[:] = request.arguments
    sys.path[0] = os.path.dirname(script)
    _set_arenas()
    _reseed()
    runpy.run_path(script, run_name="__main__")


def _end_with(server: int) -> None:
    """Have the kernel kill this fork when the server dies: its client does not outlive the server either."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the kernel knew.
    if os.getppid() != server:
        os.kill(os.getpid(), signal.SIGKILL)


def _take_files(numbers: list[int], files: list[int]) -> None:
    """Give the client's open files their numbers there, and close the server's."""
    above = max([*numbers, *files], default=2) + 1
    held = [os.dup2(file, above + place) for place, file in enumerate(files)]
    os.closerange(0, above)
    for number, file in zip(numbers, held, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)


def _set_arenas() -> None:
    """Allow more than the server's one arena, unless the request limits them."""
    libc = ctypes.CDLL(None)
    if ARENAS not in os.environ and hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 8 * (os.cpu_count() or 1))


def _reseed() -> None:
    """Reseed numpy's generator, which would be the same in all forks; Python reseeds its own."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def main() -> None:
    """Import the modules in argv, then serve on the socket in argv; a fork runs its script and ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # Keeps memory shared with the forks: a collection would write to every object's page.
    gc.collect()
    gc.freeze()
    server = os.getpid()
    asked = serve(listener)
    if asked:
        _end_with(server)
        become(*asked)


if __name__ == "__main__":
    main()
