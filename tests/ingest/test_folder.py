"""Which row belongs to which shard, and which reason a failure counts under."""

import pytest

from beamclip.ingest.folder import ShardPlan, failure_reason


def test_plan_places_each_row_in_one_shard() -> None:
    plan = ShardPlan(rows=25, shard_size=10).with_retries(tuple(range(0, 24, 2)))
    assert list(plan.first_shards) == [0, 1, 2]
    assert list(plan.retry_shards) == [3, 4]
    first = [row for i in plan.first_shards for row in plan.rows_of(i)]
    second = [row for i in plan.retry_shards for row in plan.rows_of(i)]
    assert first == list(range(25))
    assert sorted([row for row in first if row not in plan.moved] + second) == first


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 503: Service Unavailable", "HTTP 503"),
        ("<urlopen error timed out>", "timed out"),
        ("The read operation timed out", "timed out"),
        ("<urlopen error [Errno -2] Name or service not known>", "host not found"),
        ("<urlopen error [Errno 111] Connection refused>", "connection failed"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "TLS error"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "incomplete body"),
        ("refused: private address", "refused: private address"),
        ("malformed answer", "malformed answer"),
        ("refused: port", "refused: port"),
        ("something new", "download failed"),
    ],
)
def test_messages_are_grouped_into_few_reasons(message: str, reason: str) -> None:
    assert failure_reason("failed_to_download", message) == reason
