"""Background work that does not delay the exit of the process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_background(name: str, body: Callable[[], Result]) -> "Future[Result]":
    """Run `body` in a daemon thread; the future holds what it returns or raises.

    A thread of an executor would not let the process exit before it ends.

    Args:
        name: name of the thread.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(body())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
