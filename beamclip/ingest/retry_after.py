"""When to repeat a request, by the answer of its host."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_BACKOFF_SECONDS = 1.0


def retry_delay(status: int, retry_after: str | None, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None if another attempt is of no use now.

    After a 429 without a usable Retry-After (CloudFront sends none), the wait is 1 s and doubles each time; a
    503 without one is not retried. A shorter Retry-After is raised to the same wait.

    Args:
        status: HTTP status of the answer.
        retry_after: its Retry-After header, seconds or an HTTP date; None without one.
        attempt: number of attempts before the one that was answered.
    """
    if status not in (429, 503):
        return None
    asked = _seconds(retry_after)
    if asked is None and status == 503:
        return None
    return max(asked or 0.0, _BACKOFF_SECONDS * 2**attempt)


def _seconds(retry_after: str | None) -> float | None:
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
