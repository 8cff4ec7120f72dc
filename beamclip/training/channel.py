"""The line between workers and the command that started them.

Workers send events through it, and rank 0 of a training asks it whether somebody pressed Ctrl-C. It lives on
the command's side: a restarted worker finds it as it was, and MLflow is reached from one place only.
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
            wait: whether the event is there when this returns. Here it always is; see RemoteChannel.
        """
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        count = len(self._events)
        taken, self._events[:count] = self._events[:count], []
        return taken

    def request_stop(self) -> None:
        """Ask the workers to save and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether request_stop was called."""
        return self._stop


class RemoteChannel:
    """The same in an actor of Ray, which hands over a job too; copies in other processes are the same one."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the command's own node: another one may be lost, and the run with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, max_restarts=0)(_ActorChannel)
        self._actor = actor.options(scheduling_strategy=here).remote()

    def put(self, event: Event, *, wait: bool = False) -> None:
        """Send an event.

        Args:
            wait: until it has arrived: what is still on its way when its sender ends is lost.
        """
        import ray

        sent = self._actor.put.remote(event)
        if wait:
            ray.get(sent)

    def take(self) -> list[Event]:
        """All events since the last call, in order."""
        import ray

        events: list[Event] = ray.get(self._actor.take.remote())
        return events

    def request_stop(self) -> None:
        """Ask the workers to save and end. Does not wait; it arrives before later calls from this process."""
        self._actor.request_stop.remote()

    def stop_requested(self) -> bool:
        """Whether request_stop was called."""
        import ray

        return bool(ray.get(self._actor.stop_requested.remote()))

    def give(self, job: Any) -> None:
        """Hand over a job, as a reference into Ray's object store."""
        import ray

        # In a list, so that Ray does not resolve it on the way.
        ray.get(self._actor.give.remote([job]))

    def job(self) -> Any | None:
        """The reference that was handed over, if one was."""
        import ray

        found = ray.get(self._actor.job.remote())
        return found[0] if found else None


class _ActorChannel(Channel):
    """What the actor of a RemoteChannel runs."""

    def __init__(self) -> None:
        super().__init__()
        self._job: list[Any] = []

    def give(self, job: list[Any]) -> None:
        self._job = job

    def job(self) -> list[Any]:
        return self._job
