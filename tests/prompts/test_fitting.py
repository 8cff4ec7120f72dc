"""Templates that fit a text tower, from what its captions looked like."""

from pathlib import Path

import pytest

from beamclip.errors import InputError
from beamclip.prompts.fitting import FITTING_FILE, fitting_of, read_fitting, write_fitting

NAMES = ("crane", "owl", "polar bear", "ostrich", "grinning face")
ARTICLES = ("a", "an", "a", "an", "a")
PHOTOS = [f"a photo of {article} {name}" for article, name in zip(ARTICLES, NAMES, strict=True)]
SENTENCES = [
    "A man rides a wave on top of a surfboard",
    "Two dogs are playing in the green grass",
    "The new phone in its red box, on sale now",
]


def test_captions_that_are_bare_names_fit_bare_names_with_and_without_a_class_list() -> None:
    for names in (NAMES, ()):
        fitting = fitting_of(NAMES * 4, names)
        assert fitting.templates == ("name",)
        assert fitting.captions is not None
        assert fitting.captions.examples == NAMES
        assert fitting.captions.name_share == (1.0 if names else None)


@pytest.mark.parametrize("names", [NAMES, ()])
def test_what_captions_say_around_the_names_becomes_the_template(names: tuple[str, ...]) -> None:
    assert fitting_of(PHOTOS, names).templates == ("a photo of a(n) {}",)
    assert fitting_of([f"{photo}." for photo in PHOTOS], names).templates == ("photo",)


def test_frames_of_several_kinds_become_a_template_each_and_rare_ones_none() -> None:
    captions = [*NAMES] * 10 + [f"{name} in red" for name in NAMES] * 8 + ["something else"]
    fitting = fitting_of(captions, NAMES)
    assert fitting.templates == ("{}", "{} in red")
    assert fitting.captions is not None
    assert fitting.captions.name_share == pytest.approx(50 / 91)


def test_contexts_behind_the_names_may_differ_each_time() -> None:
    captions = [f"{name}, seen on day {day}" for day, name in enumerate(NAMES * 3)]
    assert fitting_of(captions, NAMES).templates == ("name",)


def test_the_longest_name_in_a_caption_is_the_one_it_is_about() -> None:
    assert fitting_of(["my polar bear", "my bear"], ("bear", "polar bear")).templates == ("my {}",)


@pytest.mark.parametrize("names", [NAMES, ()])
def test_sentences_of_many_words_fit_photographs(names: tuple[str, ...]) -> None:
    fitting = fitting_of(SENTENCES, names)
    assert fitting.templates == ("photo",)
    assert fitting.captions is not None
    assert fitting.captions.median_words == 10


def test_names_and_captions_of_other_normal_forms_are_the_same() -> None:
    assert fitting_of(["cafe\u0301"], ["caf\u00e9"]).captions.name_share == 1.0  # type: ignore[union-attr]


def test_the_note_in_a_directory_is_read_back(tmp_path: Path) -> None:
    assert read_fitting(tmp_path) is None
    fitting = fitting_of(PHOTOS, NAMES)
    write_fitting(fitting, tmp_path)
    assert read_fitting(tmp_path) == fitting


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"templates": ["{}{}"], "reason": ""}', '{"a": 1}'])
def test_a_note_that_says_nothing_usable_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FITTING_FILE).write_text(content)
    with pytest.raises(InputError, match=f"{FITTING_FILE}: says nothing usable"):
        read_fitting(tmp_path)
