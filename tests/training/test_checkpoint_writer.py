"""Writing beside the training: what is submitted is what is written, and no failure goes unseen."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from beamclip.training.checkpoint import State, read_checkpoint, write_checkpoint
from beamclip.training.checkpoint_store import find_checkpoint
from beamclip.training.checkpoint_writer import CheckpointWriter, snapshot
from beamclip.training.manifest import STATE_FILE, Manifest

SOURCES = Path(__file__).parents[2]


def state_at(step: int, numbers: int = 1000) -> State:
    return {"step": step, "weight": torch.full((numbers,), float(step)), "ema": None}


def writer_to(
    address: str | Path, on_written: Callable[[Manifest, float], None] = lambda manifest, seconds: None
) -> CheckpointWriter:
    return CheckpointWriter(str(address), 2, world_size=1, data="", on_written=on_written)


def test_a_checkpoint_holds_what_was_submitted_though_training_goes_on(tmp_path: Path) -> None:
    weight = torch.ones(5_000_000)
    nested: dict[str, Any] = {"counts": [1, 2], "inner": {"weight": weight[:10]}}
    with writer_to(tmp_path) as writer:
        writer.submit({"step": 1, "weight": weight, "nested": nested}, 1.0)
        weight.zero_()
        nested["counts"].append(3)
        nested["inner"]["more"] = 4
    got = read_checkpoint(str(tmp_path), 1)
    assert torch.equal(got["weight"], torch.ones(5_000_000))
    assert torch.equal(got["nested"]["inner"].pop("weight"), torch.ones(10))
    assert got["nested"] == {"counts": [1, 2], "inner": {}}


def test_submitting_waits_for_the_write_before_and_not_for_its_own(tmp_path: Path) -> None:
    events: list[str] = []
    go_on = threading.Event()

    def on_written(manifest: Manifest, seconds: float) -> None:
        assert seconds >= 0
        assert go_on.wait(60)
        events.append(f"written {manifest.step}")

    with writer_to(tmp_path, on_written) as writer:
        writer.submit(state_at(1), 1.0)
        writer.check()
        events.append("submitted 1")
        go_on.set()
        writer.submit(state_at(2), 1.0)
        assert events[:2] == ["submitted 1", "written 1"]
    assert events == ["submitted 1", "written 1", "written 2"]


def test_checkpoints_are_written_in_order_and_old_ones_removed(tmp_path: Path) -> None:
    written: list[int] = []
    with writer_to(tmp_path, lambda manifest, seconds: written.append(manifest.step)) as writer:
        for step, loss in ((1, 2.0), (2, 1.0), (3, 4.0), (4, 3.0)):
            writer.submit(state_at(step), loss)
    assert written == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step:08d}" for step in (2, 3, 4)]


def test_a_failed_write_is_raised_by_every_call_until_the_writer_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    writer = writer_to(tmp_path / "file")
    writer.submit(state_at(1), 1.0)
    with pytest.raises(NotADirectoryError):
        writer.submit(state_at(2), 1.0)
    with pytest.raises(NotADirectoryError):
        writer.submit(state_at(3), 1.0)
    with pytest.raises(NotADirectoryError):
        writer.check()
    with pytest.raises(NotADirectoryError):
        writer.close()
    writer.check()
    writer.close()


def check_for_ever(writer: CheckpointWriter) -> None:
    while True:
        writer.check()
        time.sleep(0.01)


def test_a_failed_write_comes_out_at_a_check_once_it_ended(tmp_path: Path) -> None:
    def on_written(manifest: Manifest, seconds: float) -> None:
        raise LookupError("nobody to tell")

    writer = writer_to(tmp_path, on_written)
    writer.submit(state_at(1), 1.0)
    with pytest.raises(LookupError, match="nobody to tell"):
        check_for_ever(writer)
    with pytest.raises(LookupError):
        writer.close()


def test_a_failed_last_write_comes_out_at_the_end_of_the_body(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError), writer_to(tmp_path / "file") as writer:
        writer.submit(state_at(1), 1.0)


def submit_and_fail(address: Path, numbers: int) -> None:
    with writer_to(address) as writer:
        writer.submit(state_at(1, numbers), 1.0)
        raise ZeroDivisionError


def test_what_the_body_raises_is_seen_and_the_failed_write_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ZeroDivisionError):
        submit_and_fail(tmp_path / "file", numbers=10)
    assert f"{tmp_path / 'file'}: the last checkpoint was not written: Not a directory" in caplog.text


def test_what_the_body_raises_does_not_cut_off_the_write(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        submit_and_fail(tmp_path, numbers=5_000_000)
    assert find_checkpoint(str(tmp_path)).manifest is not None


@pytest.mark.slow
def test_a_process_that_ends_without_closing_finishes_its_write(python: list[str], tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "checkpoints"
    program.write_text("""
import sys, torch
from beamclip.training.checkpoint_writer import CheckpointWriter
writer = CheckpointWriter(sys.argv[1], 2, world_size=1, data="", on_written=lambda manifest, seconds: None)
writer.submit({"step": 1, "weight": torch.ones(5_000_000)}, 1.0)
""")
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    subprocess.run([*python, str(program), str(folder)], env=environment, check=True)
    assert torch.equal(read_checkpoint(str(folder), 1)["weight"], torch.ones(5_000_000))


# Snapshots


def test_a_snapshot_shares_no_memory_with_the_state() -> None:
    weight = nn.Parameter(torch.ones(3))
    state = {"weights": [weight, (weight[:2],)], "name": "a", "none": None}
    got = snapshot(state)
    with torch.no_grad():
        weight.zero_()
    assert got["weights"][0].tolist() == [1, 1, 1]
    assert not got["weights"][0].requires_grad
    assert got["weights"][1][0].tolist() == [1, 1]
    assert isinstance(got["weights"][1], tuple)


def test_a_snapshot_of_a_view_leaves_the_rest_of_its_memory_behind(tmp_path: Path) -> None:
    state = snapshot({"step": 1, "row": torch.zeros(1000, 1000)[3]})
    written = write_checkpoint(str(tmp_path), state, loss=None, world_size=1, data="")
    assert written.files[STATE_FILE].bytes < 10_000


def test_a_snapshot_keeps_the_versions_of_the_layers(tmp_path: Path) -> None:
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    write_checkpoint(str(tmp_path), snapshot({"step": 1, "method": state}), loss=None, world_size=1, data="")
    got = read_checkpoint(str(tmp_path), 1)["method"]
    assert got._metadata == state._metadata  # type: ignore[attr-defined]
    assert got._metadata["0"] == {"version": 2}


def test_a_value_that_could_not_be_read_again_is_refused_with_its_place() -> None:
    state = {"step": 1, "groups": [{"lr": 0.1}, {"lr": np.float64(0.1)}]}
    with pytest.raises(TypeError, match=re.escape("state['groups'][1]['lr'] is a float64")):
        snapshot(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_snapshot_of_a_gpu_lies_in_cpu_memory() -> None:
    weight = torch.ones(1000, device="cuda")
    got = snapshot({"weight": weight})["weight"]
    weight.zero_()
    assert got.device.type == "cpu"
    assert torch.equal(got, torch.ones(1000))
