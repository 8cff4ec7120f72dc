"""Who is tried next: what is left on the list, then what Optuna makes of the scores; who is tried again."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import ray.tune
from ray.tune.search import Searcher
from ray.util import placement_group_table

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.options import DistillConfig, SweepConfig
from beamclip.commands.search import SearchConfig
from beamclip.data.shard_file import UnansweredShardError
from beamclip.sweep.space import Range, Settings, Space, Values, parse_space
from beamclip.sweep.sweep import _suggestions
from beamclip.sweep.trial import METRIC, Score, Trial
from beamclip.sweep.tuning import OptunaSampler, TrialQueue, run_trials, tune_environment

# The processes of the trials cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPACE = {"tau_teacher": Values((0.01, 0.02, 0.04)), "templates": Values((("name",), ("photo",)))}


def test_listed_trials_come_in_order_and_then_none():
    listed = [Trial(number, {"tau_teacher": 0.1 * number}) for number in (3, 5)]
    suggestions = TrialQueue(listed, None, ())
    assert len(suggestions) == 2
    assert suggestions.suggest("a") == {"number": 3, "settings": {"tau_teacher": 0.1 * 3}, "step": 0}
    assert suggestions.suggest("b")["number"] == 5
    suggestions.on_trial_complete("a", {METRIC: 0.5})
    assert suggestions.suggest("c") is None
    suggestions.on_trial_complete("b", {METRIC: 0.5})
    assert suggestions.suggest("d") == Searcher.FINISHED


def test_a_trial_goes_on_behind_the_last_score_that_was_heard_of():
    scored = (Score(3, 0.1, 0.2), Score(6, 0.1, 0.2))
    suggestions = TrialQueue([Trial(0, {}, "running", 9, scored), Trial(1, {})], None, (), 1)
    assert [suggestions.suggest(each)["step"] for each in "ab"] == [6, 0]
    suggestions.on_trial_result("b", {"step": 3})
    assert suggestions.comes_back("b", had_started=True, counts=True)
    assert suggestions.suggest("c") == {"number": 1, "settings": {}, "step": 3}


def test_trials_of_optuna_get_numbers_that_no_earlier_trial_has():
    """The second trial was cut off before it started, and left no file."""
    pytest.importorskip("optuna")
    done = {number: Trial(number, {"tau_teacher": 0.01, "num_contexts": 0}, "finished") for number in (0, 2)}
    space: Space = {"tau_teacher": Values((0.01, 0.02, 0.04)), "num_contexts": Values((0, 1))}
    config = SweepConfig(search=SearchConfig(optuna=True, trials=4))
    suggestions = _suggestions(config, space, done)
    assert [suggestions.suggest(each)["number"] for each in "ab"] == [3, 4]
    assert len(suggestions) == 0


@pytest.mark.parametrize(
    ("losses", "allowed"),
    [
        ([(True, True)] * 9, 2),
        # A node that was taken away.
        ([(True, False)] * 9 + [(True, True)] * 9, 11),
        # A process that had died idle, once; one that cannot start at all.
        ([(False, True)] + [(True, True)] * 9, 3),
        ([(False, True)] * 9, 3),
    ],
)
def test_a_trial_comes_back_as_often_as_max_failures_says(losses, allowed):
    suggestions = TrialQueue([Trial(0, {})], None, (), max_failures=2)
    came_back = 0
    for had_started, counts in losses:
        suggestions.suggest("a")
        if not suggestions.comes_back("a", had_started=had_started, counts=counts):
            break
        came_back += 1
    assert came_back == allowed
    assert suggestions.suggest("b") == Searcher.FINISHED


def dying(trial: dict[str, Any]) -> None:
    """A trial of two scores; its settings say where its process dies, at its first start, its second, ..."""
    starts = Path(trial["settings"]["starts"])
    with starts.open("a") as file:
        file.write("started\n")
    number = len(starts.read_text().splitlines()) - 1
    dies = [*trial["settings"]["dies"], None][number]
    try:
        for step in range(trial["step"] + 1, 3):
            if dies == f"before score {step}":
                os.kill(os.getpid(), signal.SIGKILL)
            if dies == f"by an error before score {step}":
                raise OSError("no route to\nthe store")
            if dies == f"reading before score {step}":
                raise UnansweredShardError("0.tar: no row came.")
            ray.tune.report(
                {
                    "step": step,
                    "steps": 2,
                    "start": number,
                    "reserved": ray.get_runtime_context().get_assigned_resources(),
                    METRIC: trial["number"] / 10,
                    "done": step == 2,
                }
            )
    finally:
        # The process is told to make room for the next trial.
        if dies == "after its last score":
            os.kill(os.getpid(), signal.SIGKILL)


class Heard:
    """A listener; what it was told of each trial, in order."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {}
        self.reserved: list[dict[str, float]] = []

    def started(self, number: int, settings: Settings) -> None:
        self.of.setdefault(number, [])

    def reported(self, number: int, report: dict[str, Any]) -> None:
        self.of[number].append((report["start"], report["step"]))
        self.reserved.append(report["reserved"])

    def lost(self, number: int, cause: str) -> None:
        self.of[number].append(cause)

    def ended(self, number: int, problem: str | None) -> None:
        self.of[number].append(problem or "ended")


def run_dying(
    deaths: Sequence[Sequence[str]], folder: Path, max_failures: int, concurrent: int
) -> tuple[Heard, str | None]:
    """Run a trial for each list of deaths; return what a listener heard, and why no other trial is run."""
    trials = [
        Trial(number, {"dies": dies, "starts": str(folder / str(number))})
        for number, dies in enumerate(deaths)
    ]
    workers = WorkersConfig(max_failures=max_failures)
    tune_environment(workers)
    suggestions = TrialQueue(trials, None, (), workers.max_failures)
    search, heard = SearchConfig(scores=2, asha=False), Heard()
    return heard, run_trials(dying, workers, suggestions, search, concurrent, heard, threading.Event())


def test_what_becomes_of_trials_whose_processes_are_lost(ray_cluster, tmp_path):
    deaths = [
        ["before score 2"],
        ["by an error before score 1", "before score 2"],
        ["after its last score"],
        [],
    ]
    groups = set(placement_group_table())
    heard, unread = run_dying(deaths, tmp_path, max_failures=1, concurrent=2)
    assert unread is None
    lost = "its process was lost"
    assert heard.of == {
        0: [(0, 1), lost, (1, 2), "ended"],
        1: [
            "OSError: no route to the store",
            (1, 1),
            f"{lost}, and --max-failures 1 allows no more restarts. Most often memory ran out; lower "
            "--max-concurrent or --batch-size",
        ],
        2: [(0, 1), (0, 2), "ended"],
        3: [(0, 1), (0, 2), "ended"],
    }
    # Ray may lose the CPUs of a placement group that is removed while it is created.
    assert set(placement_group_table()) == groups
    assert all(reserved == {"CPU": 0.5} for reserved in heard.reserved)


def test_a_trial_that_cannot_read_its_data_ends_the_sweep(ray_cluster, tmp_path):
    heard, unread = run_dying([["reading before score 1"], [], []], tmp_path, max_failures=0, concurrent=1)
    assert unread == "0.tar: no row came, and --max-failures 0 allows no more restarts"
    assert heard.of == {0: [unread]}


def test_optuna_is_asked_after_the_list_and_told_every_score():
    pytest.importorskip("optuna")
    advisor = OptunaSampler(SPACE, 0, [])
    suggestions = TrialQueue([Trial(0, {"tau_teacher": 0.01, "templates": ("name",)})], advisor, range(1, 4))
    assert suggestions.suggest("0")["number"] == 0
    seen = [suggestions.suggest(str(number)) for number in (1, 2, 3)]
    assert [each["number"] for each in seen] == [1, 2, 3]
    for each in seen:
        assert each["settings"]["tau_teacher"] in (0.01, 0.02, 0.04)
        assert each["settings"]["templates"] in (("name",), ("photo",))
    suggestions.on_trial_complete("1", {METRIC: 0.5})
    suggestions.on_trial_complete("2", {METRIC: -1.0})
    suggestions.on_trial_complete("3", error=True)
    assert not suggestions.comes_back("3", had_started=True, counts=True)
    told = advisor._study.trials
    assert all(trial.state.is_finished() for trial in told)
    assert [trial.value for trial in told if trial.value is not None] == [0.5]


def test_optuna_tries_nothing_twice_in_one_start_or_two():
    pytest.importorskip("optuna")
    first = OptunaSampler(SPACE, 0, [])
    asked = [first.ask(number) for number in range(3)]
    known = [Trial(number, settings, "failed") for number, settings in enumerate(asked)]
    second = OptunaSampler(SPACE, 0, known)
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
    advisor = OptunaSampler(space, 0, known)
    asked = [advisor.ask(number)["lr"] for number in range(20, 40)]
    blind = OptunaSampler({"lr": Range(1e-5, 1e-1)}, 0, [])
    unguided = [blind.ask(number)["lr"] for number in range(20, 40)]
    assert sum(1e-3 < lr < 5e-2 for lr in asked) > sum(1e-3 < lr < 5e-2 for lr in unguided)
