"""The Dockerfile, as far as it can be known to be right without Docker; see dockerfile_in_chroot.py."""

import json
import re
import subprocess
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from cluster.dockerfile_in_chroot import Instruction, copied, instructions, settings

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "/home/ubuntu/beamclip-env"


@pytest.fixture(scope="module")
def steps() -> list[Instruction]:
    return instructions((ROOT / "Dockerfile").read_text())


def rests(steps: list[Instruction], word: str) -> list[str]:
    return [step.rest for step in steps if step.word == word]


def install(steps: list[Instruction]) -> Instruction:
    (step,) = [step for step in steps if step.word == "RUN" and "pip install" in step.rest]
    return step


def test_lines_that_are_continued_are_one_instruction_and_comments_are_none():
    text = '# a\nFROM x\n\nRUN a \\\n    # b\n    && c\nCMD ["d"]\n'
    assert [(step.word, step.rest.split()) for step in instructions(text)] == [
        ("FROM", ["x"]),
        ("RUN", ["a", "&&", "c"]),
        ("CMD", ['["d"]']),
    ]


def test_the_python_is_one_that_beamclip_supports(steps):
    (base,) = rests(steps, "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
    assert version is not None
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert f"Programming Language :: Python :: {version[1]}" in classifiers


def test_all_extras_that_commands_use_are_installed_in_the_tested_versions(steps):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    line = install(steps).rest
    assert set(line.partition("[")[2].partition("]")[0].split(",")) == set(extras) - {"test", "docs"}
    assert "-c constraints.txt" in line
    assert "--no-cache-dir" in line


def test_packages_are_installed_before_the_code_comes(steps):
    before = steps[: steps.index(install(steps))]
    sources = {source for step in before if step.word == "COPY" for source in copied(step)[0]}
    assert sources == {"pyproject.toml", "constraints.txt", "beamclip/__init__.py"}


def test_the_image_has_what_cluster_yaml_sends_to_nodes(steps):
    mounts = yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    sent = {path for path in mounts.values() if not path.startswith("~")}
    sources = {source for step in steps if step.word == "COPY" for source in copied(step)[0]}
    assert {"beamclip", "pipelines", "tune", "pyproject.toml", "constraints.txt"} <= sources
    assert sources - {"beamclip/__init__.py"} <= sent
    assert rests(steps, "WORKDIR") == ["/home/ubuntu/beamclip"]


def test_everything_copied_exists_and_docker_may_see_it(steps):
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = {source for step in steps if step.word == "COPY" for source in copied(step)[0]}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {source.partition("/")[0] for source in sources} == let_in


def test_the_mark_of_a_complete_environment_is_the_hash_of_both_files(steps, tmp_path):
    (mark,) = [rest for rest in rests(steps, "RUN") if ".beamclip-installed" in rest]
    (tmp_path / "constraints.txt").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    line = mark.replace(ENVIRONMENT, str(tmp_path))
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert (tmp_path / ".beamclip-installed").read_text().strip() == sha256(b"a==1\n[project]\n").hexdigest()


def test_commands_are_found_by_every_shell_of_a_user_without_rights(steps):
    assert rests(steps, "USER")[-1] == "ubuntu"
    variables = {
        name: value for step in steps if step.word == "ENV" for name, value in settings(step).items()
    }
    assert variables["PATH"].split(":")[0] == f"{ENVIRONMENT}/bin"
    # /etc/profile sets PATH anew in a login shell.
    assert any(f"PATH={ENVIRONMENT}/bin:$PATH' > /etc/profile.d/" in rest for rest in rests(steps, "RUN"))


def test_a_node_does_not_start_without_the_token(steps):
    assert any("RAY_AUTH_MODE=token" in rest for rest in rests(steps, "ENV"))


def test_kuberay_and_ray_start_a_shell_of_their_own(steps):
    assert rests(steps, "ENTRYPOINT") == []
    (command,) = rests(steps, "CMD")
    assert json.loads(command) == ["beamclip", "--help"]


@pytest.mark.parametrize("program", ["wget", "rsync", "openssh-client", "g++"])
def test_the_programs_that_ray_and_torch_call_are_installed(steps, program: str):
    (line,) = [rest for rest in rests(steps, "RUN") if "apt-get install" in rest]
    assert program in line.split()


def test_every_command_parses(steps):
    for line in rests(steps, "RUN"):
        done = subprocess.run(["sh", "-n", "-c", line], capture_output=True, text=True)
        assert (done.stderr, done.returncode) == ("", 0), line
