"""The channel between workers and the command that started them.

Workers send events through it, and rank 0 asks it what to do: the user may have pressed Ctrl-C, or more
workers may be about to start. It lives beside the command, so that it survives the restart of a worker, and
only the command talks to MLflow.
"""

import math
from typing import Any

from beamclip.training.events import Event, Saved
from beamclip.training.questions import Request


class Channel:
    """A queue of events and the requests of a run, for the threads of one process."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop = False
        self._save = False
        self._save_step = math.inf
        self._saved = False

    def put(self, event: Event, *, wait: bool = False) -> None:
        """Add an event.

        Args:
            wait: ignored, since the event arrives at once; see RemoteChannel.
        """
        self._events.append(event)
        # A checkpoint of an earlier step was on its way already.
        if isinstance(event, Saved) and event.step >= self._save_step:
            self._saved = True

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

    def request_save(self) -> None:
        """Ask the workers for a checkpoint; they train on."""
        self._save, self._save_step, self._saved = True, math.inf, False

    def saved(self) -> bool:
        """Return whether the checkpoint that request_save last asked for is written."""
        return self._saved

    def request(self, step: int) -> Request:
        """Return what the workers are to do after a step; a checkpoint is asked for once."""
        if self._stop:
            return "stop"
        if not self._save:
            return "nothing"
        self._save, self._save_step = False, step
        return "save"


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

    def request_save(self) -> None:
        """Ask the workers for a checkpoint; they train on."""
        self._actor.request_save.remote()

    def saved(self) -> bool:
        """Return whether the checkpoint that request_save last asked for is written."""
        import ray

        return bool(ray.get(self._actor.saved.remote()))

    def request(self, step: int) -> Request:
        """Return what the workers are to do after a step; a checkpoint is asked for once."""
        import ray

        asked: Request = ray.get(self._actor.request.remote(step))
        return asked

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
