"""What a user does with a cluster from a laptop, as far as it can be tried without one."""

import socket
from pathlib import Path

import pytest

from beamclip.cluster.head import fetch, main, storage_of
from beamclip.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "storage"),
    [("cluster.yaml", "s3://YOUR-BUCKET/beamclip"), ("cluster/on-premises.yaml", "/shared/beamclip")],
)
def test_the_storage_is_read_from_the_file_of_the_cluster(file: str, storage: str) -> None:
    assert storage_of(ROOT / file) == storage


def test_a_file_without_a_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("setup_commands: []\n")
    with pytest.raises(InputError, match=r"c\.yaml: no line runs cluster/setup\.sh STORAGE"):
        storage_of(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "none.yaml", "distill"], "error: none.yaml: cannot be read (No such file or directory)."),
        (["submit", "cluster.yaml"], "error: no command to submit. For example: make submit ARGS="),
        (["fetch", "none.yaml"], "error: none.yaml: cannot be read (No such file or directory)."),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said)
    assert printed.err.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", str(ROOT / "cluster.yaml"), "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"error: port {port} is in use.")


def test_runs_are_fetched_from_an_address_without_their_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("model/weights", "config.yaml")
    for name in (*(f"{run}/run/{file}" for run in ("a", "b/c") for file in files), "a/step=00000005/state"):
        path = tmp_path / "bucket/runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    cluster = tmp_path / "c.yaml"
    cluster.write_text(f"setup_commands:\n  - bash ~/beamclip/cluster/setup.sh file://{tmp_path}/bucket\n")
    assert fetch(cluster, tmp_path / "runs") == 0
    found = sorted(str(path.relative_to(tmp_path / "runs")) for path in (tmp_path / "runs").rglob("*.*"))
    assert found == ["a/config.yaml", "b/c/config.yaml"]
    assert (tmp_path / "runs/a/model/weights").read_text() == "a/run/model/weights"
    assert capsys.readouterr().out == f"{tmp_path}/runs: a b/c\n"


def test_another_run_of_the_same_name_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, content in (("bucket/runs/a/run", "of the cluster"), ("runs/a", "of this machine")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.yaml").write_text(content)
    cluster = tmp_path / "c.yaml"
    cluster.write_text(f"setup_commands:\n  - bash ~/beamclip/cluster/setup.sh file://{tmp_path}/bucket\n")
    assert fetch(cluster, tmp_path / "runs") == 0
    assert (tmp_path / "runs/a/config.yaml").read_text() == "of this machine"
    assert "holds another run of this name" in capsys.readouterr().err
