"""The folder of a run: what may be written where, and how a run comes back when its folder is lost."""

import json
from pathlib import Path

import pytest
import torch

from beamclip.commands.command_line import parse
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.commands.training_line import Progress
from beamclip.config import write_config
from beamclip.errors import InputError
from beamclip.runs.backup import back_up, restore_run
from beamclip.runs.folder import checkpoint_address, open_run_dir
from beamclip.runs.recorder import append_history, read_history, rewind_history
from beamclip.tracking.place import note_run, tracked_run_id
from beamclip.training.checkpoint import write_checkpoint
from beamclip.training.config import CheckpointConfig, OptimConfig

DATA = "8 shards, 100 samples, 0123456789abcdef"


def save(address: str, step: int, data: str = DATA) -> None:
    state = {"step": step, "weight": torch.ones(10)}
    write_checkpoint(address, state, loss=1.0, world_size=1, data=data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def checkpoints(run: Path) -> str:
    return checkpoint_address(None, run)


def test_checkpoints_lie_in_the_folder_of_the_run_or_where_they_are_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert checkpoint_address(None, Path("run")) == str(run / "checkpoints")
    assert checkpoint_address("elsewhere", run) == str(run.parent / "elsewhere")
    assert checkpoint_address("s3://bucket/run", run) == "s3://bucket/run"


def test_a_new_run_makes_its_folder(run: Path, checkpoints: str) -> None:
    open_run_dir(run, checkpoints, DATA, resume=False)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "plots"]


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew(run: Path, checkpoints: str) -> None:
    open_run_dir(run, checkpoints, DATA, resume=False)
    append_history(run, {"step": 3.0, "loss": 2.0})
    open_run_dir(run, checkpoints, DATA, resume=False)
    assert read_history(run) == []


def test_a_resumed_run_keeps_its_history(run: Path, checkpoints: str) -> None:
    open_run_dir(run, checkpoints, DATA, resume=False)
    append_history(run, {"step": 3.0, "loss": 2.0})
    save(checkpoints, 3)
    open_run_dir(run, checkpoints, DATA, resume=True)
    assert read_history(run) == [{"step": 3.0, "loss": 2.0}]


def test_a_new_run_does_not_mix_with_an_older_one(run: Path, checkpoints: str) -> None:
    save(checkpoints, 3)
    with pytest.raises(InputError, match=f"with --resume {run}, or give another --out"):
        open_run_dir(run, checkpoints, DATA, resume=False)


def test_a_run_without_a_whole_checkpoint_cannot_go_on(run: Path, checkpoints: str) -> None:
    with pytest.raises(InputError, match=r"no whole checkpoint in .* Start the run anew"):
        open_run_dir(run, checkpoints, DATA, resume=True)
    save(checkpoints, 3)
    (run / "checkpoints" / "step=00000003" / "state.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"step=00000003: state\.pt holds 4 of [\d,]+ bytes\. Start"):
        open_run_dir(run, checkpoints, DATA, resume=True)


def test_a_run_does_not_go_on_in_other_data(run: Path, checkpoints: str) -> None:
    save(checkpoints, 3, data="9 shards, 120 samples, fedcba9876543210")
    with pytest.raises(InputError, match=r"with other data \(9 shards, 120 samples, .*these \(8 shards, 100"):
        open_run_dir(run, checkpoints, DATA, resume=True)


@pytest.mark.parametrize("config_class", [DistillConfig, PretrainConfig])
def test_a_run_whose_folder_is_lost_comes_back_from_its_checkpoints(
    config_class: type[DistillConfig] | type[PretrainConfig], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"file://{run.parent}/bucket/run-7"
    lost = run.parent / "lost"
    lost.mkdir()
    config = config_class(
        data=("s3://shards",), optim=OptimConfig(steps=70), checkpoint=CheckpointConfig(checkpoints=address)
    )
    write_config(config, lost / "config.yaml")
    note_run(lost, "abc", "sqlite:////home/mlflow.db")
    append_history(lost, {"step": 3.0, "loss": 2.0})
    back_up(address, lost)
    got = parse(config_class, ["--resume", address, "--out", str(run), "--seed", "4"], "")
    assert (got.data, got.optim.steps, got.seed, got.out, got.resume) == (
        ("s3://shards",),
        70,
        4,
        run,
        address,
    )
    assert got.checkpoint.checkpoints == address
    assert (read_history(run), tracked_run_id(run)) == ([{"step": 3.0, "loss": 2.0}], "abc")


def test_without_a_name_a_run_that_comes_back_gets_a_new_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "lost").mkdir()
    write_config(PretrainConfig(), run.parent / "lost" / "config.yaml")
    back_up(f"file://{run.parent}/bucket", run.parent / "lost")
    got = parse(PretrainConfig, ["--resume", f"file://{run.parent}/bucket"], "")
    assert got.out is not None
    assert got.out.parent == run.parent / "runs"
    assert (got.out / "config.yaml").exists()


def test_nothing_is_copied_beside_checkpoints_in_the_run_itself(run: Path, checkpoints: str) -> None:
    open_run_dir(run, checkpoints, DATA, resume=False)
    write_config(PretrainConfig(), run / "config.yaml")
    back_up(checkpoints, run)
    assert list((run / "checkpoints").iterdir()) == []


def test_a_copy_that_cannot_be_made_is_logged_and_no_more(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.mkdir()
    write_config(PretrainConfig(), run / "config.yaml")
    (run.parent / "file").write_text("")
    back_up(f"file://{run.parent}/file/checkpoints", run)
    assert "no copy of the run's own files" in caplog.text


@pytest.mark.parametrize("address", ["file:///nowhere/at/all", "foo://bar"])
def test_an_address_without_a_run_is_refused(run: Path, address: str) -> None:
    with pytest.raises(InputError, match=f"^--resume {address}: cannot be read .*Give the --out folder"):
        restore_run(address, run)
    assert not run.exists()


def test_a_run_comes_back_again_and_again_and_never_into_the_folder_of_another(run: Path) -> None:
    address = f"{run.parent}/bucket"
    run.mkdir()
    write_config(PretrainConfig(), run / "config.yaml")
    back_up(address, run)
    append_history(run, {"step": 3.0, "loss": 2.0})
    restore_run(address, run)
    assert read_history(run) == [{"step": 3.0, "loss": 2.0}]
    (run / "config.yaml").write_text(json.dumps({"data": "x"}))
    with pytest.raises(InputError, match="holds another run"):
        restore_run(address, run)


def test_a_plain_folder_of_checkpoints_brings_a_run_back_as_well(run: Path) -> None:
    (run.parent / "lost").mkdir()
    write_config(PretrainConfig(), run.parent / "lost" / "config.yaml")
    back_up(f"{run.parent}/shared", run.parent / "lost")
    got = parse(PretrainConfig, ["--resume", f"{run.parent}/shared", "--out", str(run)], "")
    assert (got.out, got.checkpoint.checkpoints) == (run, f"{run.parent}/shared")


def test_records_after_the_step_that_training_went_back_to_are_left_out(run: Path) -> None:
    run.mkdir()
    for step in (10.0, 20.0, 30.0):
        append_history(run, {"step": step})
    assert rewind_history(run, 20) == read_history(run) == [{"step": 10.0}, {"step": 20.0}]


def test_a_run_is_not_overwritten_by_one_whose_checkpoints_lie_elsewhere(run: Path) -> None:
    first, second = f"{run.parent}/first", f"{run.parent}/second"
    open_run_dir(run, first, DATA, resume=False)
    write_config(PretrainConfig(checkpoint=CheckpointConfig(checkpoints=first)), run / "config.yaml")
    open_run_dir(run, second, DATA, resume=False)
    save(first, 3)
    with pytest.raises(InputError, match=f"^{first}: holds the checkpoints of an earlier run"):
        open_run_dir(run, second, DATA, resume=False)


def test_a_checkpoint_that_was_never_finished_is_no_earlier_run(run: Path, checkpoints: str) -> None:
    save(checkpoints, 3)
    (run / "checkpoints" / "step=00000003" / "manifest.json").unlink()
    open_run_dir(run, checkpoints, DATA, resume=False)
    assert (run / "checkpoints" / "step=00000003" / "state.pt").exists()
    assert (run / "plots").is_dir()


def test_a_command_counts_from_its_earliest_start() -> None:
    progress = Progress([])
    for step in (60, 40):
        progress.begin([{"step": 40.0, "window_seconds": 9.0}], step, workers=1)
    progress.history.append({"step": 60.0, "window_seconds": 2.0})
    assert (progress.first_step, progress.training_seconds) == (40, 2.0)


def test_a_file_in_the_place_of_the_folder_is_refused(run: Path, checkpoints: str) -> None:
    run.write_text("")
    with pytest.raises(InputError, match=f"^--out {run}: cannot be made"):
        open_run_dir(run, checkpoints, DATA, resume=False)
