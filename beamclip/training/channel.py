"""The line between the training workers and the command that started them.

Rank 0 sends its records through it and asks it whether somebody pressed Ctrl-C. It lives on the
command's side: a restarted worker finds it as it was, and MLflow is reached from one place only.
"""

from typing import Any

import ray

Record = dict[str, Any]


@ray.remote(num_cpus=0, max_restarts=0)
class Channel:
    """A queue of records and one flag."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._stop = False

    def put(self, record: Record) -> None:
        """Add a record."""
        self._records.append(record)

    def take(self) -> list[Record]:
        """All records since the last call, in order."""
        records, self._records = self._records, []
        return records

    def request_stop(self) -> None:
        """Ask the workers to save and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether request_stop was called."""
        return self._stop
