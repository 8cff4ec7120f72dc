"""Messages about samples that cannot be used: a line each for the first few of every reason."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

LostSample = tuple[str, str]
"""A reason, and a line that names the shard and the sample."""

LINES_PER_REASON = 3


def in_words(error: BaseException) -> str:
    """Return an error's type and text in one line, cut to 200 characters of text."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def lost_sample(row: Mapping[str, Any]) -> LostSample:
    """Describe a row of `shards.ROW_SCHEMA` whose `problem` is set."""
    shard, key, reason = row["shard"], row["key"], row["problem"]
    where = f"shard {shard}" if key == shard else f"shard {shard}, sample {key}"
    line = f"{where}: {reason}" + (f" ({row['detail']})" if row.get("detail") else "")
    # Keys come from files; control characters would reach the terminal.
    return reason, "".join(character if character.isprintable() else "?" for character in line)


class FirstLost:
    """Picks the first few lost samples of each reason: a million lines help nobody."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()
        self._lines: set[str] = set()

    def new(self, lost: Iterable[LostSample]) -> list[LostSample]:
        """Return the samples to report: the first LINES_PER_REASON of each reason, no line twice."""
        return [each for each in lost if self._is_new(*each)]

    def _is_new(self, reason: str, line: str) -> bool:
        if self._passed[reason] >= LINES_PER_REASON or line in self._lines:
            return False
        self._passed[reason] += 1
        self._lines.add(line)
        return True
