"""The scheduling of shards; that real processes and Ray tasks do the work is tested with the ingest."""

from collections import Counter

from beamclip.data.shard_download import ShardTask
from beamclip.data.shard_runners import run_shards


class InstantRunner:
    """Finishes tasks in the order they come; `bad` ones fail every time, `shaky` ones the first time."""

    slots = 2

    def __init__(self, bad: set[int], shaky: set[int]) -> None:
        self.bad, self.shaky = bad, shaky
        self.attempts: list[int] = []
        self.running: list[int] = []

    def submit(self, task: ShardTask) -> None:
        assert len(self.running) < self.slots
        self.attempts.append(task.shard_id)
        self.running.append(task.shard_id)

    def next_finished(self) -> tuple[int, bool]:
        shard_id = self.running.pop(0)
        first = self.attempts.count(shard_id) == 1
        return shard_id, shard_id not in self.bad and not (first and shard_id in self.shaky)


def test_failed_shard_is_tried_twice_and_reported_once() -> None:
    runner = InstantRunner(bad={1}, shaky={2})
    results = list(run_shards(runner, (ShardTask(i, "") for i in range(4))))
    assert sorted(results) == [(0, True), (1, False), (2, True), (3, True)]
    assert Counter(runner.attempts) == {0: 1, 1: 2, 2: 2, 3: 1}
