"""When a host wants to be asked again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from beamclip.ingest.retry_after import retry_delay


@pytest.mark.parametrize(
    ("status", "header", "attempt", "delay"),
    [
        (429, "7", 0, 7), (503, " 120 ", 0, 120), (429, "0", 0, 1), (429, "2", 3, 8),
        (429, None, 0, 1), (429, None, 2, 4), (429, "soon", 1, 2), (429, "-5", 0, 1),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT", 0, 1),
        (503, None, 0, None), (503, "soon", 0, None), (404, "7", 0, None), (500, "7", 0, None),
    ],
)  # fmt: skip
def test_seconds_are_waited_and_doubled_where_none_are_given(
    status: int, header: str | None, attempt: int, delay: float | None
) -> None:
    assert retry_delay(status, header, attempt) == delay


def test_absurd_seconds_are_long() -> None:
    assert (retry_delay(429, "9" * 5000, 0) or 0) > 10**8


def test_date_is_waited_for() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < (retry_delay(503, date, 0) or 0) <= 3600
