"""The channel between workers and the command that started them.

Workers send events through it, and rank 0 asks it whether the user pressed Ctrl-C. It lives beside the
command, so that it survives the restart of a worker, and only the command talks to MLflow.
"""

from typing import Any

from beamclip.training.events import Event


class Channel:
    """A queue of events and one flag, for the threads of one process."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False

    def put(self, event: Event, *, wait: bool = False) -> None:
        """Add an event.

        Args:
            wait: ignored, since the event arrives at once; see RemoteChannel.
        """
        self._events.append(event)

    def take(self) -> list[Event]:
        """Return all events since the last call, in order."""
        count = len(self._events)
        taken, self._events[:count] = self._events[:count], []
        return taken

    def request_stop(self) -> None:
        """Ask the workers to save and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Return whether request_stop was called."""
        return self._stop


class RemoteChannel:
    """A Channel in a Ray actor, which also hands over a job; pickled copies reach the same actor."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the command's own node: losing any other node must not end the run.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, max_restarts=0)(_ActorChannel)
        self._actor = actor.options(scheduling_strategy=here).remote()

    def put(self, event: Event, *, wait: bool = False) -> None:
        """Send an event.

        Args:
            wait: return only when it has arrived; an event still on its way when its sender ends is lost.
        """
        import ray

        sent = self._actor.put.remote(event)
        if wait:
            ray.get(sent)

    def take(self) -> list[Event]:
        """Return all events since the last call, in order."""
        import ray

        events: list[Event] = ray.get(self._actor.take.remote())
        return events

    def request_stop(self) -> None:
        """Ask the workers to save and end. Does not wait; it arrives before later calls from this process."""
        self._actor.request_stop.remote()

    def stop_requested(self) -> bool:
        """Return whether request_stop was called."""
        import ray

        return bool(ray.get(self._actor.stop_requested.remote()))

    def give(self, job: Any) -> None:
        """Hand the workers a job, given as a reference into Ray's object store."""
        import ray

        # In a list, so that Ray does not resolve it on the way.
        ray.get(self._actor.give.remote([job]))

    def job(self) -> Any | None:
        """Return the reference that `give` was called with; None before that."""
        import ray

        found = ray.get(self._actor.job.remote())
        return found[0] if found else None


class _ActorChannel(Channel):
    """The actor behind a RemoteChannel."""

    def __init__(self) -> None:
        super().__init__()
        self._job: list[Any] = []

    def give(self, job: list[Any]) -> None:
        self._job = job

    def job(self) -> list[Any]:
        return self._job
