"""Batches made in a background thread: in order, ended on demand, errors handed over."""

import threading
from collections.abc import Generator, Iterable
from itertools import count, islice
from typing import Any

import pytest

from beamclip.data.worker_stream import prefetched
from beamclip.errors import InputError


def numbered(items: Iterable[int], closed: threading.Event) -> Generator[Any, None, None]:
    try:
        yield from items
    finally:
        closed.set()


def test_prefetching_keeps_the_order_and_closes_its_source() -> None:
    closed = threading.Event()
    with prefetched(numbered(count(), closed), 3) as batches:
        assert list(islice(batches, 50)) == list(range(50))
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "beamclip-prefetch"]


def test_an_error_behind_the_prefetching_is_raised_after_the_batches_before_it() -> None:
    def failing() -> Generator[Any, None, None]:
        yield 1
        yield 2
        raise InputError("no usable image")

    with prefetched(failing(), 4) as batches:
        assert [next(batches), next(batches)] == [1, 2]
        with pytest.raises(InputError, match="no usable image"):
            next(batches)


def test_prefetching_begins_before_the_first_batch_is_asked_for() -> None:
    begun = threading.Event()

    def noting() -> Generator[Any, None, None]:
        begun.set()
        yield from count()

    with prefetched(noting(), 1):
        assert begun.wait(timeout=10)
