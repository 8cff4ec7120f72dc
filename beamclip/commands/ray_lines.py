"""Keep what Ray's native code writes to stderr off the terminal; it goes to `ray.log` in the run's folder.

Such lines are written by threads outside Python, past every logger: "core_worker.cc:2465: ..." and the like.
So while a command runs, another process stands between its stderr and the terminal. It passes all other lines
on at once, those of a crash too, which a thread of the command would not live to see. Where the command ends
without ending this, it passes on the last line of Ray as well.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOG_FILE = "ray.log"
END = "\x04beamclip ends\n"
"""Line by which the other process ends: processes of Ray may hold its pipe open for longer."""

_FILTER = r"""
import os, re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
of_ray = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] |\[state-dump\]|\[symbolize_elf")
end = sys.argv[2].encode()
last = b""
with open(sys.argv[1], "ab", 0) as log:
    for line in iter(sys.stdin.buffer.readline, b""):
        if line.endswith(end):
            last = b""
            break
        if of_ray.match(line):
            last = line
            log.write(line)
        else:
            sys.stderr.buffer.raw.write(line)
# The process is gone without a word of its own: Ray's last one says why.
sys.stderr.buffer.raw.write(last)
"""


@contextlib.contextmanager
def ray_lines_apart() -> Iterator[Path]:
    """Inside, keep Ray's own lines off stderr; yield the file that they are in, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="beamclip-log-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, LOG_FILE)
        log.touch()
        try:
            terminal = os.dup(2)
            # Isolated and without site packages, Python starts within 15 ms.
            passing = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _FILTER, str(log), END],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError:  # no stderr, or no more processes: then its lines are shown
            yield log
            return
        assert passing.stdin is not None
        os.dup2(passing.stdin.fileno(), 2)
        passing.stdin.close()
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.write(2, END.encode())
            os.dup2(terminal, 2)
            os.close(terminal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                passing.wait(5)


def keep_ray_lines(log: Path, folder: Path) -> None:
    """Add the lines to the file of that name in a run's folder, if there are any and the folder exists."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()
        if folder.is_dir() and lines:
            with (folder / LOG_FILE).open("ab") as kept:
                kept.write(lines)
