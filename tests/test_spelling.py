"""Suggestions for mistyped names."""

from beamclip.spelling import close_names, did_you_mean, or_list


def test_names_that_begin_with_the_word_come_first_and_shortest_first() -> None:
    names = ["vit_tiny_patch16_384_longer", "vit_tiny_patch16_224", "vat_tiny", "resnet18"]
    assert close_names("vit_tiny", names) == [
        "vit_tiny_patch16_224",
        "vit_tiny_patch16_384_longer",
        "vat_tiny",
    ]


def test_case_does_not_matter_and_the_true_spelling_is_given() -> None:
    assert close_names("vit-b-32", ["RN50", "ViT-B-32"]) == ["ViT-B-32"]


def test_nothing_is_suggested_for_a_word_like_no_name() -> None:
    assert close_names("zzz", ["resnet18", "RN50"]) == []
    assert close_names("", ["resnet18", "RN50"]) == []


def test_a_suggestion_names_as_many_as_were_asked_for() -> None:
    names = ["tau_teacher", "tau_student", "seed"]
    assert did_you_mean("tau", names, "", count=2) == "Did you mean tau_student or tau_teacher?"
    assert did_you_mean("tau_techer", names, "") == "Did you mean tau_teacher?"
    assert did_you_mean("zzz", names, "There are 3.") == "There are 3."


def test_or_list_reads_as_prose() -> None:
    assert or_list(["a"]) == "a"
    assert or_list(["a", "b", "c"]) == "a, b or c"
