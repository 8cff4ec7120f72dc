"""The plan of an epoch, and Ray Data's reading of it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from beamclip.data.rows import ROWS_PER_TASK, epoch_segments, read_dataset, read_rows
from beamclip.data.shards import Columns, Shard, list_shards

CAPTIONED = Columns(caption=True)
SEED = 3


@pytest.mark.parametrize("world_size", range(1, 6))
@pytest.mark.parametrize("count", range(1, 8))
def test_the_parts_of_the_ranks_are_disjoint_and_cover_every_row(world_size: int, count: int) -> None:
    generator = random.Random(count)
    shards = [Shard(f"{i}.tar", generator.randint(1, 9), "tar") for i in range(count)]
    total = sum(shard.samples for shard in shards)
    for epoch in range(4):
        read = []
        for rank in range(world_size):
            segments = epoch_segments(shards, SEED, epoch, rank, world_size)
            assert all(s.epoch == epoch and 0 <= s.start < s.stop <= s.shard.samples for s in segments)
            read.append([(s.shard.path, row) for s in segments for row in range(s.start, s.stop)])
        assert sorted(row for part in read for row in part) == [
            (shard.path, row) for shard in shards for row in range(shard.samples)
        ]
        assert {len(part) for part in read} <= {total // world_size, -(-total // world_size)}


def test_the_order_of_the_shards_depends_on_seed_and_epoch() -> None:
    shards = [Shard(f"{i}.tar", 3, "tar") for i in range(20)]

    def order(seed: int, epoch: int) -> list[str]:
        return [segment.shard.path for segment in epoch_segments(shards, seed, epoch, 0, 1)]

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_rows_arrive_in_the_order_of_the_plan(ray_cluster: None, folder: Path) -> None:
    shards = list_shards(str(folder))
    segments = [s for epoch in range(3) for s in epoch_segments(shards, SEED, epoch, 1, 2)]
    wanted = [
        f"{int(Path(segment.shard.path).stem):05d}{row:04d}"
        for segment in segments
        for row in range(segment.start, segment.stop)
    ]
    assert [row["key"] for rows in read_rows(segments, CAPTIONED) for row in rows] == wanted


def test_hundreds_of_small_segments_share_a_few_read_tasks(ray_cluster: None, folder: Path) -> None:
    shards = list_shards(str(folder))
    segments = [s for epoch in range(40) for s in epoch_segments(shards, SEED, epoch, 0, 1)]
    total = sum(shard.samples for shard in shards)
    dataset = read_dataset(segments, CAPTIONED).materialize()
    assert dataset.count() == 40 * total
    assert dataset.num_blocks() <= 40 * total / ROWS_PER_TASK + 1


def test_read_tasks_need_no_torch() -> None:
    """Their processes would take seconds longer to start."""
    check = "import sys, beamclip.data.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
