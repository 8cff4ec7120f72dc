"""Words that occur beside class names in the captions of shards, ranked by pointwise mutual information.

Ray Data makes one pass over the shards, with a task for each; only counts leave the tasks. Two classes with
the same name get the same words: captions do not say which of them is meant.
"""

import json
import logging
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from beamclip.data.lost_samples import FirstLost, LostSample, lost_sample
from beamclip.data.rows import own_errors, prepared_dataset
from beamclip.data.shards import MISSING_CAPTION, Columns, Shard, iterate_rows

log = logging.getLogger(__name__)

LEAST_TOGETHER = 2
"""Samples that a word and a class must share: a word met once would rank highest, and says nothing."""
MOST_COUNTED = 4_000_000
"""Largest size of a counter of words or pairs; beyond that, entries met once are dropped."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass
class WordCounts:
    """Numbers of samples in which words, class names, and pairs of both occur."""

    samples: int = 0
    words: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    """Class names, as their words joined by spaces."""
    together: Counter[str] = field(default_factory=Counter)
    """Pairs, as a class name, a line break, and a word beside it."""

    def add(self, other: "WordCounts") -> None:
        """Add the counts of other samples, and drop rare entries of counters that grow too large."""
        self.samples += other.samples
        self.words.update(other.words)
        self.names.update(other.names)
        self.together.update(other.together)
        for counter in (self.words, self.together):
            if len(counter) > MOST_COUNTED:
                for key in [key for key, number in counter.items() if number == 1]:
                    del counter[key]


def words_of(text: str) -> list[str]:
    """Split a text (NFC) into case-folded words, in order; hyphens and apostrophes inside words stay."""
    return [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFC", text))]


def count_samples(samples: Iterable[Sequence[str]], names: Iterable[str]) -> WordCounts:
    """Count the words, names, and words beside names in samples of one or more texts each.

    A name occurs where its words follow each other in one of the texts. A name's own words are not counted
    beside it.
    """
    by_first: dict[str, list[list[str]]] = defaultdict(list)
    for phrase in map(words_of, {" ".join(words_of(name)) for name in names}):
        by_first[phrase[0] if phrase else ""].append(phrase)
    counts = WordCounts()
    for texts in samples:
        tokenised = [words_of(text) for text in texts]
        words = set().union(*tokenised)
        met = {name for tokens in tokenised for name in _names_in(tokens, by_first)}
        counts.samples += 1
        counts.words.update(words)
        counts.names.update(met)
        for name in met:
            counts.together.update(f"{name}\n{word}" for word in words.difference(name.split(" ")))
    return counts


def _names_in(tokens: list[str], by_first: dict[str, list[list[str]]]) -> Iterator[str]:
    for place, token in enumerate(tokens):
        for phrase in by_first.get(token, ()):
            if tokens[place : place + len(phrase)] == phrase:
                yield " ".join(phrase)


def ranked_words(counts: WordCounts, names: Iterable[str], most: int) -> dict[str, tuple[str, ...]]:
    """Map each name to the words beside it, most telling first, at most `most` of them.

    Words are ranked by pointwise mutual information, ln(samples x together / (name x word)), nats, and then
    by frequency. Words that are not met more often than by chance are left out.
    """
    beside: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for pair, together in counts.together.items():
        name, word = pair.split("\n")
        if together >= LEAST_TOGETHER:
            # A word was met wherever the pair was, though its own count may have been dropped meanwhile.
            by_chance = counts.names[name] * max(counts.words[word], together)
            beside[name].append((math.log(counts.samples * together / by_chance), together, word))
    found = {}
    for name in names:
        telling = [each for each in beside[" ".join(words_of(name))] if each[0] > 0]
        telling.sort(key=lambda each: (-each[0], -each[1], each[2]))
        found[name] = tuple(word for _, _, word in telling[:most])
    return found


def caption_words(
    shards: list[Shard], names: Sequence[str], columns: Columns, most: int
) -> dict[str, tuple[str, ...]]:
    """Rank the words beside class names in the captions of all shards, as `ranked_words` does.

    Args:
        names: of the classes.
        columns: which texts of a sample are read.
        most: words for each name.
    """
    import ray.data

    wanted: Any = ray.put(names)

    def count_shard(row: dict[str, Any]) -> dict[str, Any]:
        shard, lost, first_lost = Shard(**row), list[LostSample](), FirstLost()

        def texts() -> Iterator[Sequence[str]]:
            for each in iterate_rows(shard, columns, range(shard.samples)):
                if each["problem"] is None:
                    yield each["texts"]
                elif each["problem"] != MISSING_CAPTION:
                    lost.extend(first_lost.new([lost_sample(each)]))

        counts = count_samples(texts(), ray.get(wanted))
        return {"counts": json.dumps(vars(counts)), "lost": json.dumps(lost)}

    items = [asdict(shard) for shard in shards]
    counted = prepared_dataset(ray.data.from_items(items, override_num_blocks=len(items))).map(count_shard)
    total, first_lost = WordCounts(), FirstLost()
    with own_errors():
        for row in counted.iter_rows():
            samples, *counters = json.loads(row["counts"]).values()
            total.add(WordCounts(samples, *map(Counter, counters)))
            for _, text in first_lost.new(map(tuple, json.loads(row["lost"]))):
                log.warning("%s", text)
    return ranked_words(total, names, most)
