"""The trace of samples: what the surviving weights saw, and nothing that was undone."""

from pathlib import Path

import torch
from batches import all_good

from beamclip.data.position import Position
from beamclip.data.stream import Batch
from beamclip.training.trace import Seen, Trace, read_trace


def batch(*samples: tuple[int, str]) -> Batch:
    epochs, keys = [epoch for epoch, _ in samples], [key for _, key in samples]
    return Batch(torch.empty(0), torch.empty(0), [], keys, epochs, Position(), **all_good(0))


def write(folder: Path, started: int, first_step: int, steps: dict[int, str], workers: int = 1) -> None:
    """A start whose workers see, in each step, one sample named after step, worker and `steps`."""
    for rank in range(workers):
        trace = Trace(folder, started=started, first_step=first_step, rank=rank, world_size=workers)
        for step, name in steps.items():
            trace.record(step, [batch((step // 10, f"{name}{rank}"))])
        trace.close()


def keys(folder: Path) -> dict[int, list[str]]:
    return {step: [seen.key for seen in found] for step, found in read_trace(folder).items()}


def test_a_step_has_the_samples_of_all_its_parts_and_ranks_in_order(tmp_path: Path) -> None:
    for rank in (1, 0):
        trace = Trace(tmp_path, started=7, first_step=0, rank=rank, world_size=2)
        trace.record(1, [batch((0, f"a{rank}"), (0, f"b{rank}")), batch((1, f"c{rank}"))])
        trace.close()
    want = [
        Seen(rank, epoch, f"{key}{rank}") for rank in (0, 1) for epoch, key in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert read_trace(tmp_path) == {1: want}


def test_what_a_restart_undid_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, {1: "a", 2: "b", 3: "c", 4: "d"}, workers=2)
    write(tmp_path, 2, 2, {3: "e"})
    assert keys(tmp_path) == {1: ["a0", "a1"], 2: ["b0", "b1"], 3: ["e0"]}


def test_a_start_that_saw_nothing_still_undoes(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, {1: "a", 2: "b", 3: "c"})
    write(tmp_path, 2, 2, {}, workers=2)
    write(tmp_path, 10, 1, {2: "d"})
    assert keys(tmp_path) == {1: ["a0"], 2: ["d0"]}


def test_half_a_line_of_a_killed_worker_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, {1: "a", 2: "b"})
    (file,) = tmp_path.glob("*/*.jsonl")
    file.write_text(file.read_text()[:-5])
    assert keys(tmp_path) == {1: ["a0"]}


def test_a_worker_that_was_killed_before_its_first_line_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, {1: "a"}, workers=2)
    next(tmp_path.glob("*/rank=00001.jsonl")).write_text("")
    assert keys(tmp_path) == {1: ["a0"]}
