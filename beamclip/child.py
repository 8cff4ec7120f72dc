"""Start modules of this package as child processes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def start_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, **popen: Any
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`, in a session of its own unless `popen` says otherwise.

    Ctrl-C in the terminal then reaches the parent only, which ends the child in its own time, and the
    child's whole process group can be ended at once. Unlike multiprocessing's spawn, this does not run
    the caller's script again, so that the caller needs no `if __name__ == "__main__"`.

    Args:
        module: dotted name; this package is importable in the child, installed or not.
        arguments: its command line.
        environment: variables to set on top of the parent's.
        popen: further arguments of `subprocess.Popen`.
    """
    package_root = str(Path(__file__).resolve().parents[1])
    search_path = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path), **(environment or {})},
        **{"start_new_session": True, **popen},
    )
