"""The choice among a sample's texts: shares, order, and that nothing is left without one."""

from collections import Counter

import pytest

from beamclip.data.captions import CAPTION_CHARACTERS, MOST_TEXTS, choose_caption, texts_of
from beamclip.data.config import CaptionConfig
from beamclip.errors import InputError

TEXTS = ["bat", "animal", "vampire"]
DRAWS = [(i + 0.5) / 4000 for i in range(4000)]


def chosen(**options) -> list[str]:
    config = CaptionConfig(**options)
    return [choose_caption(TEXTS, draw, config) for draw in DRAWS]


def test_one_text_is_taken_as_it_is_whatever_is_dropped() -> None:
    assert choose_caption(["bat"], 0.3, CaptionConfig(caption_dropout=1.0)) == "bat"


def test_the_same_number_chooses_the_same_text() -> None:
    assert chosen() == chosen()


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_each_text_is_sampled_equally_often(dropout: float) -> None:
    counts = Counter(chosen(caption_dropout=dropout))
    assert set(counts) == set(TEXTS)
    # Three standard deviations of a binomial count of 4,000 at 1 / 3.
    assert all(abs(count - 4000 / 3) < 3 * (4000 * 2 / 9) ** 0.5 for count in counts.values())


def test_texts_are_joined_in_all_orders() -> None:
    joined = chosen(caption_join="concat")
    assert {frozenset(text.split(", ")) for text in joined} == {frozenset(TEXTS)}
    assert len(set(joined)) == 6


def test_dropout_thins_what_is_joined_to_its_binomial_counts() -> None:
    lengths = Counter(len(text.split(", ")) for text in chosen(caption_join="concat", caption_dropout=0.5))
    # None left out in 1/8 of the cases, two or all three (of which one comes back) in 1/2.
    assert abs(lengths[3] / 4000 - 1 / 8) < 0.02
    assert abs(lengths[1] / 4000 - 1 / 2) < 0.03
    assert set(lengths) == {1, 2, 3}


def test_full_dropout_leaves_one_text() -> None:
    assert set(chosen(caption_join="concat", caption_dropout=1.0)) == set(TEXTS)


def test_fields_become_texts_without_blanks_and_doubles() -> None:
    assert texts_of(["bat", ["animal", " bat ", "", None], None, 7]) == ["bat", "animal", "7"]


def test_texts_are_cut_and_hold_characters_only() -> None:
    """Of an escaped ampersand's escape's escape ..., tokenizers undo one level at a time."""
    escaped = "&" + "amp;" * 50_000
    texts = texts_of([escaped, "half \ud83d a pair", b"caf\xe9", float("nan"), 2.5])
    assert texts == [escaped[:CAPTION_CHARACTERS], "half \ufffd a pair", "caf\ufffd", "2.5"]
    assert len(texts_of([[f"tag {i}" for i in range(100_000)]])) == MOST_TEXTS
    joined = choose_caption(texts, 0.3, CaptionConfig(caption_join="concat"))
    assert len(joined) == CAPTION_CHARACTERS


@pytest.mark.parametrize("value", [{"en": "bat"}, [["bat"]]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="where a text is expected"):
        texts_of([value])


def test_a_dropout_that_is_no_probability() -> None:
    with pytest.raises(InputError, match=r"caption_dropout is 1\.5: give a number from 0 to 1"):
        CaptionConfig(caption_dropout=1.5)
