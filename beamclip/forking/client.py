"""A stand-in for Python: `client.py ADDRESS SCRIPT ...` has a server run the script in a fork.

It uses the standard library only, since it runs before every worker: `python -I -S client.py`.
"""

import json
import os
import signal
import socket
import struct
import sys

SIZE = "!I"
"""Format of the request's size in bytes, which precedes it and carries the open files."""
CODE = "!i"
"""Format of the answer: how the fork ended, as in subprocess.Popen.returncode."""
MOST_FILES = 250
"""Open files that a request may carry; Linux allows 253. With more, the script runs without a server."""
GROUP = "BEAMCLIP_FORK_GROUP"
"""Variable in the request's environment that holds the client's process group."""


def main() -> None:
    """Have the server run the script, and end as the script does; without a server, become Python."""
    address, arguments = sys.argv[1], sys.argv[2:]
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        code = _run(server, arguments)
    except OSError:
        # No server: become the Python that Ray would have started.
        os.execv(sys.executable, [sys.executable, *arguments])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _run(server: socket.socket, arguments: list[str]) -> int:
    files = [number for number in _open_files() if number != server.fileno()]
    if len(files) > MOST_FILES:
        raise OSError("more open files than a message carries")
    environment = {**os.environ, GROUP: str(os.getpgrp())}
    request = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "files": files}
    body = json.dumps(request).encode("utf-8", "surrogateescape")
    socket.send_fds(server, [struct.pack(SIZE, len(body))], files)
    server.sendall(body)
    answer = server.recv(struct.calcsize(CODE))
    # No answer: the server was killed, and nobody can tell how the script ends.
    return struct.unpack(CODE, answer)[0] if answer else -signal.SIGKILL


def _open_files() -> list[int]:
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            # The descriptor that listed the others.
            continue
        numbers.append(int(name))
    return numbers


if __name__ == "__main__":
    main()
