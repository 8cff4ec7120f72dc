"""In the place of Python: `client.py ADDRESS SCRIPT ...` has a server run the script in a fork of its own.

A plain script of the standard library, since it runs before every worker: `python -I -S client.py`.
"""

import json
import os
import signal
import socket
import struct
import sys

SIZE = "!I"
"""Before the request: its bytes. The open files come with it."""
CODE = "!i"
"""The answer: how the fork ended, as in subprocess.Popen.returncode."""
MOST_FILES = 250
GROUP = "BEAMCLIP_FORK_GROUP"
"""Variable of the request that names the client's process group."""


def main() -> None:
    """Run the script by the server, and end as it does."""
    address, arguments = sys.argv[1], sys.argv[2:]
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        code = _run(server, arguments)
    except OSError:
        # No server: as if it had never been there.
        os.execv(sys.executable, [sys.executable, *arguments])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _run(server: socket.socket, arguments: list[str]) -> int:
    files = [number for number in _open_files() if number != server.fileno()]
    environment = {**os.environ, GROUP: str(os.getpgrp())}
    request = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "files": files}
    body = json.dumps(request).encode("utf-8", "surrogateescape")
    socket.send_fds(server, [struct.pack(SIZE, len(body))], files)
    server.sendall(body)
    answer = server.recv(struct.calcsize(CODE))
    # A server that was killed takes its forks along.
    return struct.unpack(CODE, answer)[0] if answer else -signal.SIGKILL


def _open_files() -> list[int]:
    numbers = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            # The one that listed the others.
            continue
        numbers.append(int(name))
    return numbers


if __name__ == "__main__":
    main()
