"""Sets of rows: what goes in comes out, merged."""

import numpy as np
import pytest
from beamclip.data.row_sets import RowSet, runs_of

SAMPLES = np.array([5, 3, 4, 2])


def listed(rows: RowSet) -> list[tuple[int, int]]:
    counts = rows.counts(SAMPLES)
    return [(s, int(row)) for s in range(len(SAMPLES)) for row in rows.rows(s, 0, int(counts[s]))]


def test_everything_holds_every_row() -> None:
    rows = RowSet.everything(SAMPLES)
    assert rows.counts(SAMPLES).tolist() == SAMPLES.tolist()
    assert listed(rows) == [(s, row) for s in range(4) for row in range(SAMPLES[s])]


def test_runs_are_sorted_and_merged_and_full_shards_are_bits() -> None:
    runs = np.array([[2, 2, 4], [0, 3, 4], [2, 1, 2], [1, 1, 3], [0, 0, 1], [1, 0, 1], [3, 1, 1]])
    rows = RowSet.of_runs(runs, SAMPLES)
    assert rows.whole.tolist() == [False, True, False, False]
    assert rows.runs.tolist() == [[0, 0, 1], [0, 3, 4], [2, 1, 4]]
    assert rows.counts(SAMPLES).tolist() == [2, 3, 3, 0]
    assert listed(rows) == [(0, 0), (0, 3), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]


def test_a_set_may_be_empty() -> None:
    rows = RowSet.of_runs(np.empty((0, 3), np.int64), SAMPLES)
    assert listed(rows) == []
    assert rows.counts(SAMPLES).tolist() == [0, 0, 0, 0]


def test_rows_are_counted_among_those_of_the_set() -> None:
    rows = RowSet.of_runs(np.array([[0, 0, 2], [0, 3, 5]]), SAMPLES)
    assert list(rows.rows(0, 1, 4)) == [1, 3, 4]
    assert list(RowSet.everything(SAMPLES).rows(0, 1, 4)) == [1, 2, 3]


@pytest.mark.parametrize("numbers", [[], [4], [0, 1, 2], [0, 2, 3, 7]])
def test_row_numbers_become_runs_and_runs_row_numbers(numbers: list[int]) -> None:
    runs = runs_of(6, np.array(numbers, np.int64))
    assert [
        row for shard, start, stop in runs.tolist() for row in range(start, stop) if shard == 6
    ] == numbers
    assert len(runs) == sum(number - 1 not in numbers for number in numbers)


def test_a_range_is_one_run() -> None:
    assert runs_of(2, range(3, 9)).tolist() == [[2, 3, 9]]
    assert runs_of(2, range(3, 3)).tolist() == []
