"""What a sweep is asked to try: read, refused, combined, drawn."""

import json

import pytest

from beamclip.commands.options import DistillConfig
from beamclip.commands.search import SearchConfig
from beamclip.errors import InputError
from beamclip.prompts.config import PromptConfig
from beamclip.sweep.space import (
    Range,
    Values,
    applied,
    combinations,
    drawn,
    grid,
    in_words,
    parse_space,
    read_settings,
)

BASE = DistillConfig()


def test_values_have_the_type_of_their_option():
    space = parse_space(
        [
            "tau_teacher=0.01,1",
            "--num-contexts=0, 2",
            "templates=name,photo",
            "student=resnet18,resnet10t",
            "pretrained=true,false",
            "context_source=hierarchy+captions,file",
            "lr=1e-4..2e-2",
            "seed=0,1",
        ],
        BASE,
    )
    assert space == {
        "tau_teacher": Values((0.01, 1.0)),
        "num_contexts": Values((0, 2)),
        "templates": Values((("name",), ("photo",))),
        "student": Values(("resnet18", "resnet10t")),
        "pretrained": Values((True, False)),
        "context_source": Values(("hierarchy+captions", "file")),
        "lr": Range(1e-4, 2e-2),
        "seed": Values((0, 1)),
    }
    assert all(isinstance(value, float) for value in space["tau_teacher"].values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tau_techer=0.1", "Did you mean tau_teacher"),
        ("num_workers=1,2", "no option of that name can be varied"),
        ("out=a,b", "no option of that name can be varied"),
        ("tau_teacher", "write OPTION=VALUE,VALUE"),
        ("tau_teacher=", "write OPTION=VALUE,VALUE"),
        ("tau_teacher=cold,0.1", "'cold' does not fit"),
        ("num_contexts=1.5", "'1.5' does not fit"),
        ("anchor_reduce=mean,median", "does not fit"),
        ("tau_teacher=0.1,0.10", "a value is given twice"),
        ("lr=1e-2..1e-4", "0 < low < high"),
        ("num_contexts=1..4", "takes any number"),
    ],
)
def test_what_cannot_be_varied_is_refused_by_name(text, expected):
    with pytest.raises(InputError, match=expected):
        parse_space([text], BASE)


def test_an_option_is_varied_in_one_place():
    with pytest.raises(InputError, match="is given twice"):
        parse_space(["tau_teacher=0.1", "tau_teacher=0.2"], BASE)


def test_the_default_space_has_contexts_where_a_source_is_given():
    assert list(parse_space([], BASE)) == ["tau_teacher", "tau_student"]
    with_source = DistillConfig(prompts=PromptConfig(context_source="hierarchy"))
    space = parse_space([], with_source)
    assert list(space) == ["tau_teacher", "tau_student", "num_contexts", "anchor_reduce"]
    assert combinations(space) == 4 * 3 * 4 * 2


def test_a_grid_has_every_combination_once():
    space = parse_space(["tau_teacher=0.1,0.2", "num_contexts=0,1,2"], BASE)
    every = grid(space)
    assert len(every) == combinations(space) == 6
    assert every[0] == {"tau_teacher": 0.1, "num_contexts": 0}
    assert len({tuple(settings.values()) for settings in every}) == 6
    with pytest.raises(InputError, match="--grid: lr has a range"):
        grid({**space, "lr": Range(1e-4, 1e-2)})


def test_draws_are_distinct_repeatable_and_spread():
    space = parse_space(["tau_teacher=0.1,0.2", "num_contexts=0,1,2"], BASE)
    five = drawn(space, 5, seed=0)
    assert len({tuple(settings.values()) for settings in five}) == 5
    assert five == drawn(space, 5, seed=0)
    assert five != drawn(space, 5, seed=1)
    assert len(drawn(space, 100, seed=0)) == 6
    ranged = drawn({"lr": Range(1e-4, 1e-2)}, 400, seed=0)
    values = [settings["lr"] for settings in ranged]
    assert 1e-4 <= min(values) < 1.2e-4
    assert 0.8e-2 < max(values) <= 1e-2
    # Half of a logarithmic range lies below its geometric mean.
    assert sum(value < 1e-3 for value in values) == pytest.approx(200, abs=40)


def test_settings_change_their_options_and_nothing_else():
    settings = {"tau_teacher": 0.5, "num_contexts": 2, "seed": 7}
    config = applied(BASE, settings)
    assert (config.csm.tau_teacher, config.prompts.num_contexts, config.seed) == (0.5, 2, 7)
    assert applied(config, {"tau_teacher": BASE.csm.tau_teacher, "num_contexts": 0, "seed": 0}) == BASE


def test_settings_survive_json():
    settings = {"templates": ("name", "photo"), "lr": 0.001, "pretrained": False, "num_contexts": 4}
    assert read_settings(json.loads(json.dumps(settings))) == settings
    assert in_words(settings) == "templates name photo, lr 0.001, pretrained False, num_contexts 4"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"max_concurrent": -1}, "max_concurrent is -1"),
        ({"grid": True, "optuna": True}, "give one of them"),
        ({"grid": True, "trials": 4}, "Leave one of them out"),
    ],
)
def test_searches_that_contradict_themselves_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        SearchConfig(**options)
