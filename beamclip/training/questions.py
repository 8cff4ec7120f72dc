"""When the workers of a training ask what it is to do, and what they may be told."""

from typing import Literal

Request = Literal["nothing", "save", "stop"]
"""What a training is to do after a step; "stop" saves as well."""

SECONDS_BETWEEN_QUESTIONS = 1.0
"""Target interval, in seconds, at which workers ask what to do: a node is taken away a minute
or two after the notice. They ask between steps, so at most once a step."""


class Questions:
    """Decides after how many steps to ask again: as many as take about a second."""

    def __init__(self, first_step: int) -> None:
        self._step = first_step
        self._asked_at: float | None = None
        self._steps = 1

    def steps_until_next(self, step: int, now: float) -> int:
        """Return the number of steps until the next question; called at each question.

        The first steps are slow, and any other may be, so the number at most doubles from one question to the
        next.

        Args:
            step: the current step, greater at each call.
            now: time of a monotonic clock, seconds.
        """
        if self._asked_at is not None:
            seconds = max(1e-6, (now - self._asked_at) / (step - self._step))
            self._steps = max(1, min(int(SECONDS_BETWEEN_QUESTIONS / seconds), 2 * self._steps))
        self._step, self._asked_at = step, now
        return self._steps
