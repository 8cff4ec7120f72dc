"""cluster/setup.sh, where an image has brought the packages, and what it refuses."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "cluster" / "setup.sh"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Home folder of a node that was started from the image: with an environment and its mark."""
    folder = tmp_path / "home"
    programs = folder / "beamclip-env" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    wanted = hashlib.sha256(
        b"".join((ROOT / name).read_bytes() for name in ("constraints.txt", "pyproject.toml"))
    )
    (folder / "beamclip-env" / ".beamclip-installed").write_text(wanted.hexdigest() + "\n")
    (folder / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\n")
    return folder


def run(home: Path, line: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return subprocess.run(
        ["bash", "-c", line], env={**kept, "HOME": str(home), **variables}, capture_output=True, text=True
    )


def set_up(home: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return run(home, " ".join(["bash", str(SETUP), *words]), BEAMCLIP_PYTHON=sys.executable, **variables)


SHOW = (
    '. ~/.bashrc; echo "$BEAMCLIP_STORAGE|$RAY_ADDRESS|$RAY_AUTH_MODE|$RAY_USAGE_STATS_ENABLED|$PYTHONPATH"'
)


def test_every_shell_of_the_node_joins_the_cluster_and_knows_the_storage(home: Path) -> None:
    done = set_up(home, "s3://bucket/beamclip")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    # A shell that nobody types into leaves an Ubuntu user's .bashrc at its first line.
    assert run(home, SHOW).stdout == f"s3://bucket/beamclip|auto|token|0|{ROOT}\n"


def test_setting_up_again_changes_nothing(home: Path) -> None:
    set_up(home, "s3://bucket/beamclip")
    before = (home / ".bashrc").read_text()
    set_up(home, "s3://bucket/beamclip")
    assert (home / ".bashrc").read_text() == before


def test_what_a_job_brings_comes_first(home: Path) -> None:
    set_up(home, "s3://bucket/beamclip")
    shown = run(home, f"{SHOW}; . ~/.bashrc; echo $PYTHONPATH", PYTHONPATH="/job", RAY_ADDRESS="local").stdout
    assert shown == f"s3://bucket/beamclip|local|token|0|/job:{ROOT}\n/job:{ROOT}\n"


def test_a_folder_is_made(home: Path) -> None:
    assert set_up(home, str(home / "shared" / "beamclip")).returncode == 0
    assert (home / "shared" / "beamclip").is_dir()


def test_a_folder_that_cannot_be_written_to_ends_it(home: Path) -> None:
    done = set_up(home, "/proc/beamclip")
    assert done.returncode == 1
    assert "/proc/beamclip is no folder that" in done.stderr
    assert not (home / ".beamclip").exists()


def test_without_a_storage_it_says_what_to_give(home: Path) -> None:
    done = set_up(home)
    assert done.returncode != 0
    assert "give the address or folder that all nodes share" in done.stderr


def test_a_python_that_does_not_fit_is_named(home: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    done = run(home, f"bash {SETUP} s3://bucket/x", BEAMCLIP_PYTHON=str(old))
    assert done.returncode == 1
    assert "is Python 3.9.1" in done.stderr
