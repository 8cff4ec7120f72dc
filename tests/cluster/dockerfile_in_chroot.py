"""Carry out the Dockerfile without Docker: each line in a fresh Debian below a folder, as root.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm /tmp/root
    unshare --mount --pid --fork --kill-child python tests/cluster/dockerfile_in_chroot.py /tmp/root

The base image has its Python in /usr/local, Debian in /usr; everything after FROM is what the file says.
Prints each step with its seconds and the size of the folder after it, in MB of 10^6 bytes. The last step is
the image's command.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).parents[2]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, such as RUN, and the rest of its line, continuations joined."""

    word: str
    rest: str


@dataclass
class State:
    """What an image keeps from one instruction to the next."""

    user: str = "root"
    folder: str = "/"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    build_args: dict[str, str] = field(default_factory=dict)


def instructions(dockerfile: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile. Heredocs, flags of RUN and other escapes are not known."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.strip().split(maxsplit=1)) for line in joined.splitlines()]


def copied(instruction: Instruction) -> tuple[list[str], str]:
    """Return the sources and the destination of a COPY."""
    *sources, destination = [word for word in instruction.rest.split() if not word.startswith("--")]
    return sources, destination


def settings(instruction: Instruction) -> dict[str, str]:
    """Return the variables of an ENV or ARG line with their values."""
    return {name: value for name, _, value in (word.partition("=") for word in shlex.split(instruction.rest))}


def carry_out(root: Path, instruction: Instruction, state: State) -> None:
    """Do what `instruction` says, below `root` and in `state`.

    Raises:
        subprocess.CalledProcessError: a command failed.
        ValueError: an instruction that this file does not know.
    """
    match instruction.word:
        case "FROM":
            pass
        case "ARG":
            state.build_args |= settings(instruction)
        case "ENV":
            state.environment |= settings(instruction)
        case "USER":
            state.user = instruction.rest
        case "WORKDIR":
            state.folder = instruction.rest
            (root / state.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(root, instruction, state)
        case "RUN":
            _in_root(root, state, ["sh", "-c", instruction.rest])
        case "CMD":
            _in_root(root, state, json.loads(instruction.rest))
        case word:
            raise ValueError(f"{word}: this instruction is not known here")


def _in_root(root: Path, state: State, command: Sequence[str]) -> None:
    home = "/root" if state.user == "root" else f"/home/{state.user}"
    variables = {"HOME": home, **state.build_args, **state.environment}
    words = [f"{name}={value}" for name, value in variables.items()]
    there = ["sh", "-c", 'cd "$0" && exec "$@"', state.folder, *command]
    subprocess.run(
        ["chroot", f"--userspec={state.user}", str(root), "/usr/bin/env", "-i", *words, *there], check=True
    )


def _copy(root: Path, instruction: Instruction, state: State) -> None:
    sources, destination = copied(instruction)
    for source in sources:
        target = root / state.folder.lstrip("/") / destination
        if (TOP / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(TOP / source, target, dirs_exist_ok=True, ignore=ignore)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / source, target)
        owner = instruction.rest.partition("--chown=")[2].partition(" ")[0]
        subprocess.run(["chown", "-R", owner or "0:0", str(target)], check=True)


def _mount(root: Path, bound: Sequence[str]) -> None:
    """Mount what a container has, and the files and folders of `bound`, each as FROM:TO, to be read only."""
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    subprocess.run(["mount", "--rbind", "/dev", str(root / "dev")], check=True)
    for source, _, target in (pair.partition(":") for pair in ["/etc/resolv.conf:/etc/resolv.conf", *bound]):
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.touch()
        subprocess.run(["mount", "--bind", "-o", "ro", source, str(place)], check=True)


def _megabytes(root: Path, bound: Sequence[str]) -> int:
    """Return what lies below `root`, MB of 10^6 bytes, without what was mounted."""
    apart = [f"--exclude={root}{pair.partition(':')[2]}" for pair in bound]
    done = subprocess.run(["du", "-sxB1", *apart, str(root)], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) // 1_000_000


def main() -> int:
    """Run the command and return the exit code: 0, or 1 if a step failed."""
    parser = argparse.ArgumentParser(description="Carry out the Dockerfile without Docker, as root.")
    parser.add_argument("root", type=Path, help="folder of a Debian with Python and its venv module")
    parser.add_argument(
        "--bind",
        nargs="*",
        default=[],
        metavar="FROM:TO",
        help="files of this machine that steps see, read only",
    )
    arguments = parser.parse_args()
    _mount(arguments.root, arguments.bind)
    print(f"{_megabytes(arguments.root, arguments.bind):>6} MB {0:7.1f} s  (the root as given)", flush=True)
    state = State()
    for instruction in instructions((TOP / "Dockerfile").read_text()):
        began = time.monotonic()
        try:
            carry_out(arguments.root, instruction, state)
        except subprocess.CalledProcessError as error:
            print(f"{instruction.word} {instruction.rest}: exit code {error.returncode}", file=sys.stderr)
            return 1
        seconds = time.monotonic() - began
        size = _megabytes(arguments.root, arguments.bind)
        print(f"{size:>6} MB {seconds:7.1f} s  {instruction.word} {instruction.rest}"[:150], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
