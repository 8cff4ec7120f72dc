"""The scheduling of shards; that real processes and Ray tasks do the work is tested with the ingest."""

from collections import Counter

from beamclip.ingest.runners import ShardState, run_shards
from beamclip.ingest.shard import ShardTask


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

    def next_event(self) -> tuple[int, ShardState]:
        shard_id = self.running.pop(0)
        first = self.attempts.count(shard_id) == 1
        failed = shard_id in self.bad or (first and shard_id in self.shaky)
        return shard_id, ShardState.FAILED if failed else ShardState.COMPLETE


class SlowRunner:
    """No shard is complete while another can be started: all wait for their last servers."""

    slots = 2

    def __init__(self) -> None:
        self.busy: list[int] = []
        self.waiting: list[int] = []
        self.most_waiting = 0

    def submit(self, task: ShardTask) -> None:
        self.busy.append(task.shard_id)
        assert len(self.busy) <= self.slots

    def next_event(self) -> tuple[int, ShardState]:
        if not self.busy:
            return self.waiting.pop(0), ShardState.COMPLETE
        self.waiting.append(self.busy.pop(0))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return self.waiting[-1], ShardState.WAITING


def test_failed_shard_is_tried_twice_and_reported_once() -> None:
    runner = InstantRunner(bad={1}, shaky={2})
    results = list(run_shards(runner, (ShardTask(i, "") for i in range(4))))
    assert sorted(results) == [(0, True), (1, False), (2, True), (3, True)]
    assert Counter(runner.attempts) == {0: 1, 1: 2, 2: 2, 3: 1}


def test_shard_that_waits_for_slow_servers_gives_its_slot_to_the_next_up_to_a_limit() -> None:
    runner = SlowRunner()
    results = list(run_shards(runner, (ShardTask(i, "") for i in range(40))))
    assert results == [(i, True) for i in range(40)]
    assert 3 * runner.slots <= runner.most_waiting <= 6 * runner.slots
