"""Templates: sets, the user's own, and the article before the class."""

import string

import open_clip
import pytest

from beamclip.errors import InputError
from beamclip.prompts.templates import OPEN_CLIP_SETS, TEMPLATE_SETS, fill, resolve_templates


@pytest.mark.parametrize(
    ("template", "slot", "expected"),
    [
        ("{}", "owl", "owl"),
        ("a photo of a(n) {}.", "crane, a type of bird", "a photo of a crane, a type of bird."),
        ("a photo of a(n) {}.", "owl", "a photo of an owl."),
        ("A(n) {} on a tree", "Owl", "An Owl on a tree"),
        ("a(n) photo of the {}.", "owl", "a(n) photo of the owl."),
        ("a photo of a {}.", "owl", "a photo of a owl."),
        ("a {}", "{} sign", "a {} sign"),
        ("a(n) {}", "8 ball", "a 8 ball"),
    ],
)
def test_a_class_fills_the_slot_and_only_a_marked_article_bends_to_it(
    template: str, slot: str, expected: str
) -> None:
    assert fill(template, slot) == expected


def test_the_article_is_an_before_the_five_vowels_and_no_other_letter() -> None:
    with_an = [letter for letter in string.ascii_lowercase if fill("a(n) {}", letter).startswith("an ")]
    assert with_an == ["a", "e", "i", "o", "u"]


@pytest.mark.parametrize("name", OPEN_CLIP_SETS)
def test_the_sets_of_open_clip_give_its_prompts_letter_by_letter(name: str) -> None:
    theirs = getattr(open_clip, OPEN_CLIP_SETS[name])
    assert len(theirs) == int(name.removeprefix("openai"))
    for slot in open_clip.IMAGENET_CLASSNAMES:
        prompts = [fill(template, slot) for template in resolve_templates([name])]
        assert prompts == [template(slot) for template in theirs]


def test_auto_stands_alone_and_for_what_the_teacher_says() -> None:
    with pytest.raises(InputError, match="auto stands beside others"):
        resolve_templates(["name", "auto"])
    with pytest.raises(ValueError, match="auto must be replaced"):
        resolve_templates(["auto"])


def test_sets_and_literal_templates_mix_in_order_without_repetition() -> None:
    templates = resolve_templates(["name", "my {}", "ensemble", "photo", "my {}"])
    assert templates == ("{}", "my {}", *TEMPLATE_SETS["ensemble"])
    assert TEMPLATE_SETS["photo"][0] in templates


@pytest.mark.parametrize("name", TEMPLATE_SETS)
def test_every_template_of_every_set_holds_the_class_once(name: str) -> None:
    templates = TEMPLATE_SETS[name]
    assert len(set(templates)) == len(templates) > 0
    assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photos"], "'photos' names no set of templates and holds no {}. Did you mean photo?"),
        (["xyzzy"], "The sets are name, photo, ensemble, symbol, openai7, openai80."),
        (["{} " + "&amp;" * 300], "1,503 characters"),
        (["a {} and a {}"], "holds {} 2 times"),
        ([], "none given"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(names: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_templates(names)
    assert expected in str(caught.value)
