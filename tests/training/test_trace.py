"""The trace of samples: what the surviving weights saw, and nothing that was undone."""

from pathlib import Path

import torch

from beamclip.data.batch import Batch
from beamclip.training.trace import Seen, Trace, read_trace


def batch(*samples: tuple[int, str], first: int = 0) -> Batch:
    """Samples at neighbouring places of the global batch, with a row without weight before each."""
    epochs, keys = [epoch for epoch, _ in samples], [key for _, key in samples]
    numbers = torch.arange(2 * first, 2 * (first + len(keys)))
    rows = {"weights": (numbers % 2).float(), "numbers": numbers, "global_size": 100, "good": len(keys)}
    return Batch(torch.empty(0), torch.empty(0), [], **rows, keys=keys, epochs=epochs)


def write(folder: Path, started: int, first_step: int, steps: dict[int, str], workers: int = 1) -> None:
    """A start whose workers see, in each step, one sample named after step, worker and `steps`."""
    for rank in range(workers):
        trace = Trace(folder, started=started, first_step=first_step, rank=rank, world_size=workers)
        for step, name in steps.items():
            trace.record(step, [batch((step // 10, f"{name}{rank}"), first=rank)])
        trace.close()


def keys(folder: Path) -> dict[int, list[str]]:
    return {step: [seen.key for seen in found] for step, found in read_trace(folder).items()}


def test_a_step_has_the_samples_of_all_its_parts_and_ranks_in_the_order_of_its_batch(tmp_path: Path) -> None:
    for rank in (1, 0):
        trace = Trace(tmp_path, started=7, first_step=0, rank=rank, world_size=2)
        parts = [
            batch((0, f"a{rank}"), (0, f"b{rank}"), first=2 * rank),
            batch((1, f"c{rank}"), first=4 + rank),
        ]
        trace.record(1, parts)
        trace.close()
    want = [(0, 0, "a0"), (0, 0, "b0"), (1, 0, "a1"), (1, 0, "b1"), (0, 1, "c0"), (1, 1, "c1")]
    assert read_trace(tmp_path) == {1: [Seen(*each) for each in want]}


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
