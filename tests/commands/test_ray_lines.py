"""What Ray's native code writes to stderr does not reach the terminal; everything else does."""

import subprocess
import sys
from pathlib import Path

NATIVE = "[2026-11-28 01:56:05,345 E 3739 3739] core_worker.cc:2465: Actor with class name"
PROGRAM = """
import os, sys, time
from pathlib import Path
from beamclip.commands.ray_lines import keep_ray_lines, ray_lines_apart
with ray_lines_apart() as log:
    {body}
    keep_ray_lines(log, Path(sys.argv[1]))
print("after", file=sys.stderr)
"""


def run(body: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def write(line: str) -> str:
    """A statement that writes a line as native code does, past Python's own streams."""
    return f"os.write(2, {f'{line}{chr(10)}'.encode()!r})"


def test_lines_of_ray_are_kept_in_the_folder_of_the_run(tmp_path: Path) -> None:
    wait = "time.sleep(0.3)"
    done = run(f"{write(NATIVE)}; {write('[state-dump] 1')}; {write('[libpng] warning')}; {wait}", tmp_path)
    assert done.stderr == "[libpng] warning\nafter\n"
    assert (tmp_path / "ray.log").read_text() == f"{NATIVE}\n[state-dump] 1\n"


def test_messages_of_the_command_keep_their_order(tmp_path: Path) -> None:
    body = "; ".join(f"print({number}, file=sys.stderr)" for number in range(5))
    assert run(body, tmp_path).stderr == "0\n1\n2\n3\n4\nafter\n"
    assert list(tmp_path.iterdir()) == []


def test_the_last_words_of_a_crash_are_shown(tmp_path: Path) -> None:
    done = run(f"{write('terminate called')}; {write(NATIVE)}; os.abort()", tmp_path)
    assert done.stderr == f"terminate called\n{NATIVE}\n"
    assert done.returncode == -6


def test_a_process_that_holds_stderr_does_not_keep_the_command(tmp_path: Path) -> None:
    done = run(
        "import subprocess; child = subprocess.Popen(['sleep', '3'], stdout=subprocess.DEVNULL)", tmp_path
    )
    assert done.returncode == 0


def test_where_a_run_left_no_folder_nothing_is_made(tmp_path: Path) -> None:
    run(write(NATIVE), tmp_path / "none")
    assert not (tmp_path / "none").exists()
