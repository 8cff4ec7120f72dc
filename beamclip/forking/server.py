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
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

from beamclip.forking import client
from beamclip.forking.start import ARENAS

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
_FIRST_FREE = 200
"""Number of an open file above all that a worker is given."""


@dataclass(frozen=True)
class Request:
    """What a client sends: a process as it would have been."""

    arguments: list[str]
    """A script and its arguments."""
    environment: dict[str, str]
    folder: str
    files: list[int]
    """Numbers of its open files, which come with the message."""


def serve(listener: socket.socket) -> None:
    """Fork for clients until the standard input ends."""
    children = dict[int, socket.socket]()
    wakes, wake = os.pipe()
    for end in (wakes, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    with selectors.DefaultSelector() as selector:
        for source in (listener, sys.stdin, wakes):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    child = _fork(connection)
                    if child:
                        children[child] = connection
                        selector.register(connection, selectors.EVENT_READ, child)
                elif key.fileobj == wakes:
                    os.read(wakes, 4096)
                    _tell_of_ended(children, selector)
                elif children.pop(key.data, None):
                    # The client says nothing more: it is gone.
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


def _fork(connection: socket.socket) -> int:
    """The child's process id, in the server; 0 where the client was gone before it had said what it wants."""
    try:
        request, files = _receive(connection)
    except (OSError, ValueError):
        connection.close()
        return 0
    with warnings.catch_warnings():
        # The threads of numpy's and Arrow's libraries see to themselves.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _become(request, files)
    for file in files:
        os.close(file)
    return child


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    head, files, _, _ = socket.recv_fds(connection, struct.calcsize(client.SIZE), client.MOST_FILES)
    (size,) = struct.unpack(client.SIZE, head)
    body = b""
    while len(body) < size:
        more = connection.recv(size - len(body))
        if not more:
            raise ValueError("the client has ended")
        body += more
    return Request(**json.loads(body)), list(files)


def _become(request: Request, files: list[int]) -> None:
    """Be the process that a client would have been, to its end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Not through the server's own way out.
        os._exit(code)


def _take_files(numbers: list[int], files: list[int]) -> None:
    """Have the open files of the client under its numbers, and none of the server's."""
    held = []
    for place, file in enumerate(files):
        held.append(os.dup2(file, _FIRST_FREE + place))
    os.closerange(0, _FIRST_FREE)
    for number, file in zip(numbers, held, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)


def _set_arenas() -> None:
    """More than the server's one, where a fork was not to have that."""
    libc = ctypes.CDLL(None)
    if ARENAS not in os.environ and hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 8 * (os.cpu_count() or 1))


def _reseed() -> None:
    """Python's own generator sees to itself; numpy's would be the same in all forks."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def main() -> None:
    """The server's process: imports, then serves."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    # What is here stays shared: a collection would write to every object's page.
    gc.collect()
    gc.freeze()
    serve(listener)


if __name__ == "__main__":
    main()
