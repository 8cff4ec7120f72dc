"""The line between the training workers and the command that started them.

Rank 0 sends its records through it and asks it whether somebody pressed Ctrl-C. It lives on the
command's side: a restarted worker finds it as it was, and MLflow is reached from one place only.
"""

from typing import Any

Record = dict[str, Any]


class Channel:
    """A queue of records and one flag, for the threads of one process."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._stop = False

    def put(self, record: Record, *, wait: bool = False) -> None:
        """Add a record.

        Args:
            wait: whether the record is there when this returns. Here it always is; see RemoteChannel.
        """
        self._records.append(record)

    def take(self) -> list[Record]:
        """All records since the last call, in order."""
        count = len(self._records)
        taken, self._records[:count] = self._records[:count], []
        return taken

    def request_stop(self) -> None:
        """Ask the workers to save and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether request_stop was called."""
        return self._stop


class RemoteChannel:
    """The same in an actor of Ray; copies in other processes are the same channel."""

    def __init__(self, **options: Any) -> None:
        """
        Args:
            options: of the actor, for Ray.
        """
        import ray

        actor: Any = ray.remote(num_cpus=0, max_restarts=0)(Channel)
        self._actor = actor.options(**options).remote()

    def put(self, record: Record, *, wait: bool = False) -> None:
        """Send a record.

        Args:
            wait: until it has arrived: what is still on its way when its sender ends is lost.
        """
        import ray

        sent = self._actor.put.remote(record)
        if wait:
            ray.get(sent)

    def take(self) -> list[Record]:
        """All records since the last call, in order."""
        import ray

        records: list[Record] = ray.get(self._actor.take.remote())
        return records

    def request_stop(self) -> None:
        """Ask the workers to save and end. Does not wait; it arrives before later calls from this process."""
        self._actor.request_stop.remote()

    def stop_requested(self) -> bool:
        """Whether request_stop was called."""
        import ray

        return bool(ray.get(self._actor.stop_requested.remote()))
