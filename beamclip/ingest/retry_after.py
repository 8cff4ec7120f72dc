"""When a host wants to be asked again."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_BACKOFF_SECONDS = 1.0


def retry_delay(status: int, retry_after: str | None, attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None: another attempt is of no use now.

    429 without a usable Retry-After (CloudFront sends none) doubles the wait each time. 503 without one is
    no promise. A host that wants to be asked again at once waits as long as well.

    Args:
        status: of the answer.
        retry_after: its header of this name, seconds or a date of HTTP.
        attempt: how many attempts came before, from 0.
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
