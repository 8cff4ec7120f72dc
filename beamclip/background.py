"""Work beside the main thread, whose end nobody has to wait for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_background(name: str, body: Callable[[], Result]) -> "Future[Result]":
    """Run in a thread of a name; the future has what it returns or raises.

    A daemon, since an executor's thread would hold up a process that is on its way out until it ends.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(body())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
