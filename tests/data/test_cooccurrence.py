"""Words beside class names: counted by hand in small texts, and over shards through Ray Data."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from beamclip.data import cooccurrence
from beamclip.data.cooccurrence import WordCounts, caption_words, count_samples, ranked_words, words_of
from beamclip.data.listing import list_shards
from beamclip.data.shards import Columns

SAMPLES = [
    ["A crane in the marsh", "wading bird"],
    ["The crane of the marsh."],
    ["a crane lifts steel"],
    ["steel: a CRANE, and a crane"],
    ["a polar bear in the snow"],
    ["a bear; polar night in the snow"],
    ["the polar bear, snow"],
    ["the night"],
]


def test_words_are_small_letters_and_keep_hyphens_and_apostrophes() -> None:
    assert words_of("The Person’s T-shirt: ÉTÉ_2024, o'clock-") == [
        "the",
        "person’s",
        "t-shirt",
        "été",
        "2024",
        "o'clock",
    ]


def test_a_sample_counts_once_whatever_it_repeats() -> None:
    counts = count_samples(SAMPLES, ["crane", "polar bear", "Polar Bear!"])
    assert counts.samples == 8
    assert counts.names == Counter({"crane": 4, "polar bear": 2})
    assert counts.words["a"] == 5
    assert counts.words["marsh"] == 2
    assert counts.together["crane\nmarsh"] == 2
    assert counts.together["crane\nsteel"] == 2
    assert counts.together["polar bear\nsnow"] == 2
    assert not [pair for pair in counts.together if pair.split("\n")[1] in pair.split("\n")[0].split()]


def test_the_rank_is_pointwise_mutual_information() -> None:
    counts = count_samples(SAMPLES, ["crane", "polar bear"])
    ranked = ranked_words(counts, ["crane", "polar bear", "owl"], most=9)

    def information(name: str, word: str) -> float:
        both = sum(_has(texts, name) and _has(texts, word) for texts in SAMPLES)
        alone = sum(_has(texts, name) for texts in SAMPLES) * sum(_has(texts, word) for texts in SAMPLES)
        return math.log(8 * both / alone)

    assert ranked["crane"] == ("marsh", "steel", "a")
    assert information("crane", "marsh") == information("crane", "steel") > information("crane", "a") > 0
    # Once in four samples of the eight, which is what chance gives.
    assert information("crane", "the") <= 0
    assert ranked["polar bear"] == ("snow", "the")
    assert ranked["owl"] == ()
    assert ranked_words(counts, ["crane"], most=1) == {"crane": ("marsh",)}


def _has(texts: list[str], phrase: str) -> bool:
    return any(f" {phrase} " in f" {' '.join(words_of(text))} " for text in texts)


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    total = WordCounts()
    for part in (SAMPLES[:3], SAMPLES[3:4], SAMPLES[4:]):
        total.add(count_samples(part, ["crane", "polar bear"]))
    assert total == count_samples(SAMPLES, ["crane", "polar bear"])


def test_where_too_much_is_counted_what_was_met_once_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "MOST_COUNTED", 6)
    total = WordCounts()
    total.add(count_samples(SAMPLES, ["crane"]))
    assert set(total.words) == {"a", "crane", "in", "the", "marsh", "steel", "polar", "bear", "snow", "night"}
    assert set(total.together.values()) == {2, 3}


def test_a_word_whose_own_count_was_dropped_ranks_by_that_of_its_pairs() -> None:
    counts = WordCounts(samples=8, names=Counter(crane=4), together=Counter({"crane\nmarsh": 3}))
    assert ranked_words(counts, ["crane"], most=1) == {"crane": ("marsh",)}


def test_captions_and_tags_of_all_shards_count(
    ray_cluster: None, write_tar: Callable[..., Path], tmp_path: Path
) -> None:
    """Two shards; a sample without a caption and one that is cut off are passed over."""
    for shard, part in enumerate((SAMPLES[:4], SAMPLES[4:])):
        samples = [
            {
                "key": f"{shard:05d}{number:04d}",
                "png": b"not looked at",
                "txt": texts[0].encode(),
                "json": json.dumps({"tags": texts[1:]}).encode(),
            }
            for number, texts in enumerate(part)
        ]
        empty = {"key": f"{shard:05d}9999", "png": b"not looked at", "txt": b" ", "json": b"{}"}
        write_tar(tmp_path, shard, [*samples, empty], claimed=len(part) + 2)
    names = ["crane", "polar bear", "owl"]
    columns = Columns(caption=True, more_texts=("tags",))
    found = caption_words(list_shards(str(tmp_path)), names, columns, most=5)
    assert found == ranked_words(count_samples(SAMPLES, names), names, most=5)
