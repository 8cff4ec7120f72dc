"""Where contexts come from."""

from typing import get_args

import pytest

from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.contexts import ContextSource, contexts_of, require_contexts

CRANE = ClassEntry("1", "crane", contexts=("it wades", "it is grey"), parents=("wading bird", "bird"))
BARE = ClassEntry("2", "heron")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("none", ()),
        ("file", ("it wades", "it is grey")),
        ("hierarchy", ("a type of wading bird", "a type of bird")),
    ],
)
def test_each_source_reads_its_part_of_a_class(source: ContextSource, expected: tuple[str, ...]) -> None:
    assert contexts_of(CRANE, source) == expected


@pytest.mark.parametrize("source", get_args(ContextSource))
def test_every_named_source_knows_no_context_of_a_bare_class(source: ContextSource) -> None:
    assert contexts_of(BARE, source) == ()


def test_a_source_that_no_class_feeds_is_refused_with_what_is_missing() -> None:
    with pytest.raises(InputError, match="context_source is file, but 0 of 2 classes carry `contexts`"):
        require_contexts([BARE, BARE], "file")
    with pytest.raises(InputError, match="context_source is hierarchy, but 0 of 1 classes carry `parents`"):
        require_contexts([BARE], "hierarchy")


def is_refused(classes: list[ClassEntry], source: ContextSource) -> bool:
    try:
        require_contexts(classes, source)
    except InputError:
        return True
    return False


def test_one_class_with_contexts_is_enough() -> None:
    assert [is_refused([BARE, CRANE], source) for source in get_args(ContextSource)] == [False, False, False]
    assert [is_refused([BARE], source) for source in get_args(ContextSource)] == [False, True, True]
