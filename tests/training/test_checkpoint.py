"""Checkpoints: what comes back is what was written, whatever befell the process, the disk or the files."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

from beamclip.errors import InputError
from beamclip.training.checkpoint import State, read_checkpoint, read_newest_checkpoint, write_checkpoint
from beamclip.training.checkpoint_store import (
    Found,
    best_step,
    check_writable,
    claim,
    discard_after,
    find_checkpoint,
    has_checkpoints,
    holds_claim,
    prune,
)
from beamclip.training.checkpoint_writer import snapshot
from beamclip.training.config import CheckpointConfig
from beamclip.training.manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    DamagedCheckpointError,
    Manifest,
    check_sizes,
)

SOURCES = Path(__file__).parents[2]


def state_at(step: int, numbers: int = 1000) -> State:
    return {"step": step, "weight": torch.full((numbers,), float(step)), "ema": None}


def write(address: str | Path, step: int, loss: float | None = 1.0, score: float | None = None) -> Manifest:
    data = "one day's shards"
    return write_checkpoint(str(address), state_at(step), loss=loss, world_size=2, data=data, score=score)


def steps_in(address: str | Path) -> list[int]:
    fs, root = fsspec.core.url_to_fs(str(address))
    names = [path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)]
    return sorted(int(name.removeprefix("step=")) for name in names)


@pytest.fixture(params=["path", "file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that is not there yet, in each kind of store that needs no server."""
    if request.param != "memory":
        yield (
            f"file://{tmp_path}/run/checkpoints" if request.param == "file" else f"{tmp_path}/run/checkpoints"
        )
        return
    yield f"memory://{tmp_path.name}/checkpoints"
    fs = fsspec.filesystem("memory")
    if fs.exists(tmp_path.name):
        fs.rm(tmp_path.name, recursive=True)


# What is written, and read again


def test_a_state_comes_back_as_it_was_written(address: str) -> None:
    state = {
        "step": 400,
        "method": {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)},
        "ema": None,
        "positions": [{"epoch": 1, "drawn": 4, "skipped": {"corrupt image": 2}}],
        "betas": (0.9, 0.98),
    }
    manifest = write_checkpoint(address, state, loss=0.5, world_size=2, data="abc")
    assert find_checkpoint(address) == Found(manifest, ())
    got = read_checkpoint(address, 400)
    torch.testing.assert_close(got.pop("method"), state.pop("method"), rtol=0, atol=0)
    assert got == state


def test_the_manifest_tells_what_lies_beside_it(tmp_path: Path) -> None:
    manifest = write(tmp_path, 400, loss=0.5)
    folder = tmp_path / "step=00000400"
    assert json.loads((folder / MANIFEST_FILE).read_text()) == {
        "format": 1,
        "step": 400,
        "loss": 0.5,
        "world_size": 2,
        "data": "one day's shards",
        "files": {STATE_FILE: vars(manifest.files[STATE_FILE])},
        "score": None,
    }
    assert manifest.files[STATE_FILE].bytes == (folder / STATE_FILE).stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_FILE, STATE_FILE]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_loss_that_is_not_finite_is_left_out(tmp_path: Path, loss: float | None) -> None:
    manifest = write(tmp_path, 1, loss)
    assert manifest.loss is None
    assert find_checkpoint(str(tmp_path)) == Found(manifest, ())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([-128, 127], dtype=torch.int8),
        torch.tensor(3.25, dtype=torch.float64),
        torch.empty(0, 4),
        torch.arange(12).reshape(3, 4).T,
        torch.ones(1).expand(5),
    ],
    ids=["bfloat16", "bool", "int8", "scalar", "empty", "transposed", "expanded"],
)
def test_tensors_of_every_kind_come_back_alike(tmp_path: Path, tensor: torch.Tensor) -> None:
    written = snapshot({"step": 1, "tensor": tensor})
    write_checkpoint(str(tmp_path), written, loss=None, world_size=1, data="")
    got = read_checkpoint(str(tmp_path), 1)["tensor"]
    torch.testing.assert_close(got, tensor, rtol=0, atol=0, equal_nan=True)


def test_an_optimiser_takes_the_same_next_step_from_what_came_back(tmp_path: Path) -> None:
    def stepped(state: State | None) -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        if state is not None:
            layer.load_state_dict(state["layer"])
            optimizer.load_state_dict(state["optimizer"])
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        return layer, optimizer

    layer, optimizer = stepped(None)
    state = snapshot({"step": 1, "layer": layer.state_dict(), "optimizer": optimizer.state_dict()})
    write_checkpoint(str(tmp_path), state, loss=None, world_size=1, data="")
    straight, resumed = stepped(state)[0], stepped(read_checkpoint(str(tmp_path), 1))[0]
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert not torch.equal(resumed.weight, layer.weight)


def test_reading_executes_nothing_from_the_file(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    address = str(tmp_path / "checkpoints")
    write_checkpoint(address, {"step": 1, "method": Harmful()}, loss=None, world_size=1, data="")
    assert find_checkpoint(address).damaged == ()
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(address, 1)
    assert not (tmp_path / "made").exists()


def test_a_step_that_is_written_again_replaces_what_was_there(address: str) -> None:
    write(address, 400)
    state = {"step": 400, "weight": torch.zeros(3)}
    manifest = write_checkpoint(address, state, loss=2.0, world_size=3, data="other")
    assert find_checkpoint(address) == Found(manifest, ())
    assert torch.equal(read_checkpoint(address, 400)["weight"], torch.zeros(3))


def test_a_checkpoint_that_was_cut_off_is_replaced_with_all_it_left(tmp_path: Path) -> None:
    folder = tmp_path / "step=00000400"
    folder.mkdir()
    (folder / STATE_FILE).write_bytes(b"half a")
    (folder / f"{MANIFEST_FILE}.new").write_bytes(b"{")
    (folder / "of-another-format.pt").write_bytes(b"old")
    manifest = write(tmp_path, 400)
    assert find_checkpoint(str(tmp_path)) == Found(manifest, ())
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_FILE, STATE_FILE]


# Damage


def edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def truncate(folder: Path) -> None:
    os.truncate(folder / STATE_FILE, 1234)


def lengthen(folder: Path) -> None:
    with (folder / STATE_FILE).open("ab") as file:
        file.write(b"more")


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / STATE_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / STATE_FILE).write_bytes(content)


def lose_the_state(folder: Path) -> None:
    (folder / STATE_FILE).unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


def tear_the_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST_FILE, 20)


def blank_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b"\xff" * 40)


def replace_the_hash(folder: Path) -> None:
    size = (folder / STATE_FILE).stat().st_size
    edit_manifest(folder, files={STATE_FILE: {"bytes": size, "sha256": "0" * 64}})


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (truncate, r"state\.pt holds 1,234 of 5,\d{3} bytes"),
    (lengthen, r"state\.pt holds 5,\d{3} of 5,\d{3} bytes"),
    (flip_a_byte, r"state\.pt is not what was written \(sha256 differs\)"),
    (lose_the_state, r"state\.pt is missing"),
    (lose_the_manifest, r"no manifest, it was not finished"),
    (tear_the_manifest, r"manifest\.json cannot be read \(.*line \d.*\)"),
    (blank_the_manifest, r"manifest\.json cannot be read \(.*decode.*\)"),
    (replace_the_hash, r"state\.pt is not what was written \(sha256 differs\)"),
    (lambda folder: edit_manifest(folder, step=200), r"manifest\.json cannot be read \(it is for step 200\)"),
    (
        lambda folder: edit_manifest(folder, format=2),
        r"manifest\.json cannot be read \(its format is 2, only 1 is known\)",
    ),
    (
        lambda folder: edit_manifest(folder, step="400"),
        r"manifest\.json cannot be read \(its step is '400'\)",
    ),
    (
        lambda folder: edit_manifest(folder, loss="low"),
        r"manifest\.json cannot be read \(its loss is 'low'\)",
    ),
    (
        lambda folder: edit_manifest(folder, score="high"),
        r"manifest\.json cannot be read \(its score is 'high'\)",
    ),
    (lambda folder: edit_manifest(folder, files=[]), r"manifest\.json cannot be read \(its files is \[\]\)"),
    (
        lambda folder: edit_manifest(folder, files={}),
        r"manifest\.json cannot be read \(it does not name state\.pt\)",
    ),
    (
        lambda folder: edit_manifest(folder, files={STATE_FILE: {"bytes": 4}}),
        r"manifest\.json cannot be read \(its record of state\.pt is \{'bytes': 4\}\)",
    ),
    (
        lambda folder: (folder / MANIFEST_FILE).write_text("[]"),
        r"manifest\.json cannot be read \(it is not a JSON object\)",
    ),
]


@pytest.mark.parametrize(("damage", "line"), DAMAGES, ids=[line for _, line in DAMAGES])
def test_damage_is_named_and_the_checkpoint_before_it_taken(
    tmp_path: Path, damage: Callable[[Path], object], line: str
) -> None:
    whole = write(tmp_path, 200)
    write(tmp_path, 400)
    damage(tmp_path / "step=00000400")
    found = find_checkpoint(str(tmp_path))
    assert found.manifest == whole
    assert len(found.damaged) == 1
    assert re.fullmatch(f"step=00000400: {line}", found.damaged[0])


@pytest.mark.parametrize(("damage", "line"), DAMAGES, ids=[line for _, line in DAMAGES])
def test_a_damaged_checkpoint_is_not_read_but_named(
    tmp_path: Path, damage: Callable[[Path], object], line: str
) -> None:
    write(tmp_path, 400)
    damage(tmp_path / "step=00000400")
    with pytest.raises(DamagedCheckpointError, match=f"{tmp_path}: step=00000400: {line}"):
        read_checkpoint(str(tmp_path), 400)


@pytest.mark.parametrize(("damage", "line"), DAMAGES, ids=[line for _, line in DAMAGES])
def test_the_newest_whole_state_is_read_and_damage_before_it_named(
    tmp_path: Path, damage: Callable[[Path], object], line: str
) -> None:
    assert read_newest_checkpoint(str(tmp_path)) == (None, ())
    write(tmp_path, 200)
    write(tmp_path, 400)
    damage(tmp_path / "step=00000400")
    state, damaged = read_newest_checkpoint(str(tmp_path))
    assert state is not None
    assert state["step"] == 200
    assert len(damaged) == 1
    assert re.fullmatch(f"step=00000400: {line}", damaged[0])


def test_a_store_gives_away_the_newest_state_once_and_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"memory://{tmp_path.name}/checkpoints"
    write(address, 200)
    write(address, 400)
    fetched = list[str]()
    cat_file = MemoryFileSystem.cat_file

    def noted(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        fetched.append(path)
        return cat_file(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    state, _ = read_newest_checkpoint(address)
    fsspec.filesystem("memory").rm(tmp_path.name, recursive=True)
    assert state is not None
    assert state["step"] == 400
    assert [path for path in fetched if path.endswith(STATE_FILE)] == [
        f"/{tmp_path.name}/checkpoints/step=00000400/{STATE_FILE}"
    ]


def test_sizes_alone_are_compared_without_reading_a_state(tmp_path: Path) -> None:
    write(tmp_path, 200)
    newest = write(tmp_path, 400)
    flip_a_byte(tmp_path / "step=00000400")
    assert find_checkpoint(str(tmp_path), check_sizes).manifest == newest
    truncate(tmp_path / "step=00000400")
    found = find_checkpoint(str(tmp_path), check_sizes)
    assert found.manifest is not None
    assert found.manifest.step == 200


def test_a_state_cut_off_anywhere_is_found_out(tmp_path: Path) -> None:
    size = write(tmp_path, 400).files[STATE_FILE].bytes
    for cut in (size - 1, size - 100, size // 2, 64, 1, 0):
        os.truncate(tmp_path / "step=00000400" / STATE_FILE, cut)
        line = f"step=00000400: {STATE_FILE} holds {cut:,} of {size:,} bytes"
        assert find_checkpoint(str(tmp_path)) == Found(None, (line,))


def test_where_all_are_damaged_there_is_none_and_every_one_is_named(tmp_path: Path) -> None:
    for step, damage in ((100, lose_the_state), (200, flip_a_byte), (300, lose_the_manifest)):
        write(tmp_path, step)
        damage(tmp_path / f"step={step:08d}")
    found = find_checkpoint(str(tmp_path))
    assert found.manifest is None
    assert [line.partition(":")[0] for line in found.damaged] == [
        "step=00000300",
        "step=00000200",
        "step=00000100",
    ]


def test_what_lies_before_the_newest_whole_checkpoint_is_not_named(tmp_path: Path) -> None:
    write(tmp_path, 200)
    flip_a_byte(tmp_path / "step=00000200")
    whole = write(tmp_path, 400)
    assert find_checkpoint(str(tmp_path)) == Found(whole, ())


def test_a_folder_that_is_missing_or_empty_holds_no_checkpoint(address: str) -> None:
    assert find_checkpoint(address) == Found(None, ())
    check_writable(address)
    assert find_checkpoint(address) == Found(None, ())


class OutOfReach(MemoryFileSystem):
    """A store that lists its files and then fails."""

    protocol = "outofreach"
    failure: OSError

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("outofreach://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        raise self.failure


@pytest.mark.parametrize(
    "failure", [ConnectionResetError("gone"), TimeoutError("late"), PermissionError("no")]
)
def test_an_outage_is_not_taken_for_damage(
    tmp_path: Path, failure: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("outofreach", OutOfReach, clobber=True)
    OutOfReach.failure = failure
    for step in (1, 2, 3):
        write(f"memory://{tmp_path.name}", step)
    address = f"outofreach://{tmp_path.name}"
    with pytest.raises(type(failure)):
        find_checkpoint(address)
    with pytest.raises(type(failure)):
        read_checkpoint(address, 2)
    with caplog.at_level(logging.WARNING):
        assert prune(address, keep=1) == []
    assert f"{address}: old checkpoints are not removed yet: {failure}" in caplog.text
    assert steps_in(f"memory://{tmp_path.name}") == [1, 2, 3]
    fsspec.filesystem("memory").rm(tmp_path.name, recursive=True)


def test_a_server_that_does_not_answer_is_not_taken_for_an_empty_folder() -> None:
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        find_checkpoint("http://127.0.0.1:9/checkpoints")


# Which checkpoints stay


def test_the_newest_checkpoints_stay_and_the_one_of_the_lowest_loss_however_old(address: str) -> None:
    for step, loss in ((100, 3.0), (200, 0.5), (300, 2.0), (400, 1.0), (500, float("nan"))):
        write(address, step, loss)
    assert prune(address, keep=2) == [300, 100]
    assert steps_in(address) == [200, 400, 500]
    assert prune(address, keep=2) == []


def test_of_equal_losses_the_newest_is_the_lowest(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write(tmp_path, step, loss=1.0)
    assert prune(str(tmp_path), keep=1) == [200, 100]


def test_a_score_outweighs_any_loss(address: str) -> None:
    assert best_step(address) is None
    written = ((100, 0.1, None), (200, 3.0, 0.4), (300, 1.0, 0.6), (400, 2.0, 0.6), (500, 1.0, 0.5))
    for step, loss, score in written:
        write(address, step, loss, score)
    assert best_step(address) == 400
    assert prune(address, keep=1) == [300, 200, 100]
    assert steps_in(address) == [400, 500]
    assert best_step(address) == 400


def test_a_checkpoint_of_a_version_without_scores_has_none(tmp_path: Path) -> None:
    write(tmp_path, 1, score=0.5)
    file = tmp_path / "step=00000001" / MANIFEST_FILE
    fields = json.loads(file.read_text())
    del fields["score"]
    file.write_text(json.dumps(fields))
    manifest = find_checkpoint(str(tmp_path)).manifest
    assert manifest is not None
    assert manifest.score is None
    assert best_step(str(tmp_path)) is None


def test_without_any_finite_loss_the_newest_stay(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write(tmp_path, step, loss=None)
    assert prune(str(tmp_path), keep=2) == [100]


def test_steps_of_more_than_eight_digits_are_newer(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        manifest = write(tmp_path, step)
    assert find_checkpoint(str(tmp_path)).manifest == manifest
    assert prune(str(tmp_path), keep=1) == [99_999_999]


def test_unfinished_checkpoints_vanish_where_a_newer_one_was_finished(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        write(tmp_path, step)
    lose_the_manifest(tmp_path / "step=00000100")
    tear_the_manifest(tmp_path / "step=00000200")
    lose_the_manifest(tmp_path / "step=00000400")
    assert prune(str(tmp_path), keep=3) == [200, 100]
    assert steps_in(tmp_path) == [300, 400]


def test_where_none_was_finished_nothing_is_removed(address: str) -> None:
    assert prune(address, keep=1) == []
    write(address, 100)
    fs, root = fsspec.core.url_to_fs(address)
    fs.rm(f"{root}/step=00000100/{MANIFEST_FILE}")
    assert prune(address, keep=1) == []
    assert steps_in(address) == [100]


def test_damaged_checkpoints_ahead_do_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        write(tmp_path, step)
    flip_a_byte(tmp_path / "step=00000300")
    flip_a_byte(tmp_path / "step=00000400")
    assert prune(str(tmp_path), keep=1, written=200) == [100]
    assert steps_in(tmp_path) == [200, 300, 400]


def test_what_is_no_checkpoint_stays(tmp_path: Path) -> None:
    foreign = ["notes.txt", "step=00000001", "step=2.bak", "step=00000002.txt"]
    folders = ["step=3", "old-step=00000003", "step=000000004", "step=0000000x", "step=" + 8 * "٥"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_FILE).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "step=00000006").symlink_to(tmp_path / "elsewhere")
    for step in (100, 200):
        write(tmp_path, step)
    assert prune(str(tmp_path), keep=1) == [100]
    assert {path.name for path in tmp_path.iterdir()} == {
        *foreign,
        *folders,
        "elsewhere",
        "step=00000006",
        "step=00000200",
    }


# Disks that refuse


def on_a_small_disk(folder: Path, program: str) -> tuple[dict[str, Any], str]:
    """Run a program beside a disk of one megabyte; returns the JSON it printed, and its standard error."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1"'
    ways = [["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]]
    for way in ways:
        try:
            tried = subprocess.run(
                [*way, "sh", "-c", mount, "sh", str(folder)], capture_output=True, text=True
            )
        except FileNotFoundError:
            pytest.skip("no unshare to mount a small disk with")
        if tried.returncode == 0:
            break
    else:
        pytest.skip(f"no small disk can be mounted: {tried.stderr.strip()}")
    done = subprocess.run(
        [*way, "sh", "-c", f'{mount} && exec "$2" -c "$3" "$1"', "sh", str(folder), sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome, done.stderr


SMALL_DISK = """
import contextlib, json, os, sys
import torch
from beamclip.errors import InputError
from beamclip.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from beamclip.training.checkpoint_store import *

address = sys.argv[1]

def write(step, numbers):
    state = {"step": step, "layers": [{"weight": torch.zeros(numbers)}]}
    return write_checkpoint(address, state, loss=1.0, world_size=1, data="")

def failure_of(kind, act, *arguments):
    try:
        act(*arguments)
    except kind as error:
        return str(error)

def fill():
    with contextlib.suppress(OSError), open(f"{address}/filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    outcome, _ = on_a_small_disk(
        tmp_path,
        SMALL_DISK
        + """
first = failure_of(CheckpointError, write, 100, 1_000_000)
write(200, 100_000)
large = failure_of(CheckpointError, write, 400, 250_000)
after_large = sorted(os.listdir(address))
fill()
small = failure_of(CheckpointError, write, 400, 10)
found = find_checkpoint(address)
print(json.dumps({
    "first": first, "large": large, "small": small, "after_large": after_large,
    "after_small": sorted(os.listdir(address)), "step": found.manifest.step, "damaged": found.damaged,
    "probe": failure_of(InputError, check_writable, address), "after_probe": sorted(os.listdir(address)),
}))
""",
    )
    full, whole = f"no space left at {tmp_path}", "The checkpoint of step 200 is whole: free space and go on"
    assert outcome == {
        "first": f"checkpoint of step 100: {full} (state of 4.0 MB). "
        "There is no whole checkpoint before it: free space and start again.",
        "large": f"checkpoint of step 400: {full} (state of 1.0 MB). {whole} with --resume.",
        "small": f"checkpoint of step 400: {full} (state of 0.0 MB). {whole} with --resume.",
        "after_large": ["step=00000200"],
        "after_small": ["filler", "step=00000200"],
        "step": 200,
        "damaged": [],
        "probe": f"{tmp_path}: no checkpoint can be written there: No space left on device. "
        "Make it writable, or give another folder with --checkpoints.",
        "after_probe": ["filler", "step=00000200"],
    }


@pytest.mark.slow
def test_a_disk_that_turns_read_only_ends_the_run_and_leaves_all_checkpoints(tmp_path: Path) -> None:
    outcome, warnings = on_a_small_disk(
        tmp_path,
        SMALL_DISK
        + """
for step in (100, 200):
    write(step, 1000)
assert os.system(f"mount -o remount,ro '{address}'") == 0
print(json.dumps({
    "message": failure_of(CheckpointError, write, 400, 1000),
    "again": failure_of(CheckpointError, write, 200, 1000),
    "probe": failure_of(InputError, check_writable, address),
    "pruned": prune(address, 1), "steps": sorted(os.listdir(address)),
    "step": find_checkpoint(address).manifest.step,
}))
""",
    )
    cause = "Read-only file system"
    failure = (
        f"{tmp_path} cannot be written to: {cause}. "
        "The checkpoint of step 200 is whole: make it writable and go on with --resume."
    )
    assert outcome == {
        "message": f"checkpoint of step 400: {failure}",
        "again": f"checkpoint of step 200: {failure}",
        "probe": f"{tmp_path}: no checkpoint can be written there: {cause}. "
        "Make it writable, or give another folder with --checkpoints.",
        "pruned": [],
        "steps": ["step=00000100", "step=00000200"],
        "step": 200,
    }
    assert f"{tmp_path}: old checkpoints are not removed yet: {cause}" in warnings


@pytest.mark.slow
def test_a_removal_that_is_cut_off_leaves_no_false_checkpoint_and_is_taken_up_again(
    tmp_path: Path,
) -> None:
    outcome, warnings = on_a_small_disk(
        tmp_path,
        SMALL_DISK
        + """
for step in (100, 200):
    write(step, 1000)
busy = f"{address}/step=00000100/busy"
os.mkdir(busy)
assert os.system(f"mount -t tmpfs tmpfs '{busy}'") == 0
first = prune(address, 1)
left = os.listdir(f"{address}/step=00000100")
assert os.system(f"umount '{busy}'") == 0
print(json.dumps({
    "first": first, "manifest stays": MANIFEST_FILE in left, "busy stays": "busy" in left,
    "second": prune(address, 1), "steps": sorted(os.listdir(address)),
}))
""",
    )
    assert outcome == {
        "first": [],
        "manifest stays": False,
        "busy stays": True,
        "second": [100],
        "steps": ["step=00000200"],
    }
    assert f"{tmp_path}: old checkpoints are not removed yet: Device or resource busy" in warnings


# Where a run asks whether it can write


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(address: str) -> None:
    check_writable(address)
    fs, root = fsspec.core.url_to_fs(address)
    assert fs.isdir(root)
    assert fs.ls(root) == []


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("nowhere://checkpoints", "cannot be opened: Protocol not known: nowhere"),
        ("dropbox://checkpoints", "cannot be opened: .*[Ii]nstall"),
        ("http://127.0.0.1:9/checkpoints", "no checkpoint can be written there: "),
    ],
    ids=["unknown protocol", "missing package", "no store to write to"],
)
def test_a_store_that_cannot_be_used_is_refused_in_one_line(address: str, cause: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(address)}: {cause}.*--checkpoints.$") as caught:
        check_writable(address)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(InputError, match=r"checkpoints: no checkpoint can be written there: File exists\."):
        check_writable(str(tmp_path / "checkpoints"))


def test_fewer_than_one_checkpoint_to_keep_is_refused() -> None:
    with pytest.raises(InputError, match=r"^keep_checkpoints is 0: give 1 or more\.$"):
        CheckpointConfig(keep_checkpoints=0)


def test_whoever_sees_the_mark_sees_the_same_folder(address: str) -> None:
    assert not holds_claim(address, "")
    first, second = claim(address), claim(address)
    assert holds_claim(address, second)
    assert not holds_claim(address, first)
    assert find_checkpoint(address) == Found(None, ())


def test_checkpoints_are_there_once_one_was_finished(tmp_path: Path) -> None:
    assert not has_checkpoints(str(tmp_path))
    write(tmp_path, 3)
    lose_the_manifest(tmp_path / "step=00000003")
    assert not has_checkpoints(str(tmp_path))
    write(tmp_path, 3)
    assert has_checkpoints(str(tmp_path))


def test_what_training_went_back_behind_does_not_push_out_a_whole_one_later(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    flip_a_byte(tmp_path / "step=00000003")
    discard_after(str(tmp_path), after=2)
    write(tmp_path, 4)
    prune(str(tmp_path), keep=2)
    assert steps_in(tmp_path) == [2, 4]


# Processes that are killed

KILLED_AGAIN_AND_AGAIN = """
import contextlib, json, multiprocessing, random, sys, time
import torch
from beamclip.training.checkpoint import write_checkpoint
from beamclip.training.checkpoint_store import find_checkpoint, prune

def write_on(address, step, reports):
    while True:
        step += 1
        state = {"step": step, "weight": torch.full((500_000,), float(step))}
        write_checkpoint(address, state, loss=float(step % 3), world_size=1, data="")
        reports.send(step)
        prune(address, 1, written=step)

def killed(address, step, seconds):
    reports, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=write_on, args=(address, step, sending))
    process.start()
    sending.close()
    reports.poll(None)
    time.sleep(seconds)
    process.kill()
    process.join()
    with contextlib.suppress(EOFError):
        while True:
            step = reports.recv()
    return step

address, processes = sys.argv[1], multiprocessing.get_context("fork")
delays, step = random.Random(0), 0
for _ in range(8):
    reported = killed(address, step, delays.uniform(0, 0.2))
    found = find_checkpoint(address)
    step = found.manifest.step if found.manifest else 0
    print(json.dumps([reported, step, found.damaged]))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_last_checkpoint_that_was_written(
    python: list[str], tmp_path: Path
) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "checkpoints"
    program.write_text(KILLED_AGAIN_AND_AGAIN)
    done = subprocess.run(
        [*python, str(program), str(folder)],
        env={**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 8
    for reported, found, damaged in rounds:
        assert found >= reported > 0
        assert all(line.endswith("no manifest, it was not finished") for line in damaged)
    state = read_checkpoint(str(folder), rounds[-1][1])
    assert torch.equal(state["weight"], torch.full((500_000,), float(state["step"])))
