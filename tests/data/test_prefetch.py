"""Batches made in a background thread: in order, ended on demand, errors handed over."""

import threading
from collections.abc import Generator, Iterable
from itertools import count, islice
from typing import Any

import pytest

from beamclip.data.stream import prefetched
from beamclip.errors import InputError


def numbered(items: Iterable[int], closed: threading.Event) -> Generator[Any, None, None]:
    try:
        yield from items
    finally:
        closed.set()


def test_prefetching_keeps_the_order_and_closes_its_source() -> None:
    closed = threading.Event()
    batches = prefetched(numbered(count(), closed), 3)
    assert list(islice(batches, 50)) == list(range(50))
    batches.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "beamclip-prefetch"]


def test_an_error_behind_the_prefetching_is_raised_after_the_batches_before_it() -> None:
    def failing() -> Generator[Any, None, None]:
        yield 1
        yield 2
        raise InputError("no usable image")

    batches = prefetched(failing(), 4)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(InputError, match="no usable image"):
        next(batches)
