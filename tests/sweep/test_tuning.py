"""Who is tried next: what is left on the list, then what Optuna makes of the scores."""

import pytest
from ray.tune.search import Searcher

from beamclip.config import DistillConfig
from beamclip.sweep.space import Range, Values, parse_space
from beamclip.sweep.trial import METRIC, Score, Trial
from beamclip.sweep.tuning import Advisor, Suggestions

SPACE = {"tau_teacher": Values((0.01, 0.02, 0.04)), "templates": Values((("name",), ("photo",)))}


def test_listed_trials_come_in_order_and_then_none():
    listed = [Trial(number, {"tau_teacher": 0.1 * number}) for number in (3, 5)]
    suggestions = Suggestions(listed, None, ())
    assert len(suggestions) == 2
    assert suggestions.suggest("a") == {"number": 3, "settings": {"tau_teacher": 0.1 * 3}}
    assert suggestions.suggest("b")["number"] == 5
    suggestions.on_trial_complete("a", {METRIC: 0.5})
    assert suggestions.suggest("c") == Searcher.FINISHED


def test_optuna_is_asked_after_the_list_and_told_every_score():
    pytest.importorskip("optuna")
    advisor = Advisor(SPACE, 0, [])
    suggestions = Suggestions([Trial(0, {"tau_teacher": 0.01, "templates": ("name",)})], advisor, range(1, 4))
    assert suggestions.suggest("0")["number"] == 0
    seen = [suggestions.suggest(str(number)) for number in (1, 2, 3)]
    assert [each["number"] for each in seen] == [1, 2, 3]
    for each in seen:
        assert each["settings"]["tau_teacher"] in (0.01, 0.02, 0.04)
        assert each["settings"]["templates"] in (("name",), ("photo",))
    suggestions.on_trial_complete("1", {METRIC: 0.5})
    suggestions.on_trial_complete("2", {METRIC: -1.0})
    suggestions.on_trial_complete("3", error=True)
    told = advisor._study.trials
    assert all(trial.state.is_finished() for trial in told)
    assert [trial.value for trial in told if trial.value is not None] == [0.5]


def test_optuna_tries_nothing_twice_in_one_start_or_two():
    pytest.importorskip("optuna")
    first = Advisor(SPACE, 0, [])
    asked = [first.ask(number) for number in range(3)]
    known = [Trial(number, settings, "failed") for number, settings in enumerate(asked)]
    second = Advisor(SPACE, 0, known)
    asked += [second.ask(number) for number in range(3, 6)]
    assert len({tuple(settings.values()) for settings in asked}) == 6
    # There is nothing new left.
    assert second.ask(6) in asked


def test_optuna_learns_from_the_trials_of_an_earlier_start():
    pytest.importorskip("optuna")
    space = parse_space(["lr=1e-5..1e-1"], DistillConfig())
    # The closer to 1e-2, the better.
    tried = [10.0**-power for power in (1.2, 1.6, 1.8, 2.0, 2.1, 2.3, 2.6, 3.0, 3.5, 4.0, 4.5, 4.9)]
    known = [
        Trial(number, {"lr": lr}, "finished", 10, (Score(10, 1.0 - abs(lr - 1e-2), 1.0),))
        for number, lr in enumerate(tried)
    ]
    advisor = Advisor(space, 0, known)
    asked = [advisor.ask(number)["lr"] for number in range(20, 40)]
    blind = Advisor({"lr": Range(1e-5, 1e-1)}, 0, [])
    unguided = [blind.ask(number)["lr"] for number in range(20, 40)]
    assert sum(1e-3 < lr < 5e-2 for lr in asked) > sum(1e-3 < lr < 5e-2 for lr in unguided)
