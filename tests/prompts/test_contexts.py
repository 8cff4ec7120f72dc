"""Where contexts come from, and how several sources go together."""

import pytest

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.contexts import class_contexts, source_names

CRANE = ClassEntry("1", "crane", contexts=("it wades", "it is grey"), parents=("wading bird", "bird"))
BARE = ClassEntry("2", "heron")


def words(entry: ClassEntry) -> tuple[str, ...]:
    """A source from outside, which knows one word of the class list's as well."""
    return ("marsh", "it wades", "feather") if entry is CRANE else ()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file", ("it wades", "it is grey")),
        ("hierarchy", ("a type of wading bird", "a type of bird")),
        ("captions", ("marsh", "it wades", "feather")),
        ("hierarchy+file", ("a type of wading bird", "it wades", "a type of bird", "it is grey")),
        ("captions + file", ("marsh", "it wades", "it is grey", "feather")),
    ],
)
def test_sources_give_their_contexts_in_turn_and_none_twice(source: str, expected: tuple[str, ...]) -> None:
    for count in range(1, 5):
        found = class_contexts([BARE, CRANE], source, count, {"captions": words})
        assert found == [(), expected[:count]]


def test_no_contexts_are_asked_of_a_source_for_none() -> None:
    assert class_contexts([BARE, CRANE], "none", 0) == [(), ()]
    assert class_contexts([BARE], "captions", 0) == [()]


def test_names_of_sources_are_read_and_faulty_ones_refused() -> None:
    assert source_names("none") == ()
    assert source_names("hierarchy + captions") == ("hierarchy", "captions")
    with pytest.raises(InputError, match=r"no source 'hierachy'\. Did you mean hierarchy"):
        source_names("file+hierachy")
    for faulty in ("file+file", "none+file", "file+none"):
        with pytest.raises(InputError, match="each source once, joined by"):
            source_names(faulty)
    with pytest.raises(InputError, match="The sources are none, file, hierarchy, wordnet, captions"):
        source_names("")


@pytest.mark.parametrize(
    ("source", "lacking"),
    [
        ("file", "0 of 2 classes carry `contexts`"),
        ("hierarchy", "0 of 2 classes carry `parents`"),
        ("captions", "0 of 2 classes occur in the captions by their names"),
        ("hierarchy+captions", "0 of 2 classes carry `parents`"),
    ],
)
def test_a_source_that_no_class_feeds_is_refused_with_what_is_missing(source: str, lacking: str) -> None:
    with pytest.raises(InputError) as caught:
        class_contexts([BARE, BARE], source, 1, {"captions": words})
    assert lacking in str(caught.value)


def test_one_class_with_contexts_is_enough_for_each_of_several_sources() -> None:
    other = ClassEntry("3", "stork", contexts=("it is white",))
    found = class_contexts([other, CRANE], "hierarchy+file", 2)
    assert found == [("it is white",), ("a type of wading bird", "it wades")]
