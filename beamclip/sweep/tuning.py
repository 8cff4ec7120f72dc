"""Ray Tune under a sweep: who is tried next, who is stopped early, who is told of it."""

import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from beamclip.cluster import WorkersConfig
from beamclip.errors import InputError
from beamclip.sweep.run_trial import NO_SCORE, Report, Shared, run_trial
from beamclip.sweep.search import SearchConfig
from beamclip.sweep.space import Range, Settings, Space, Values
from beamclip.sweep.trial import METRIC, Trial
from beamclip.training.process import CPU_WORKER_ENVIRONMENT

REDUCTION = 2
"""One in so many goes on at a step of ASHA's ladder, which are so many times apart."""
ASKED_AGAIN = 50
"""Times that Optuna is asked for settings that are new."""
CPUS_BESIDE_WORKERS = 0.1
"""Of a trial of several workers, for the process that watches them."""

_ENVIRONMENT = {
    # Silence; by 1, verbose=0 says a good deal.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C is ours to hear.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A process that takes the next trial has to end the training of the one that was stopped first.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Listener(Protocol):
    """Is told what becomes of the trials, in the thread that called `run_trials`."""

    def started(self, number: int, settings: Settings) -> None:
        """A trial begins, or begins again after its process was lost."""

    def reported(self, number: int, report: Report) -> None:
        """A trial was scored."""

    def ended(self, number: int, problem: str | None) -> None:
        """A trial is at its end, was stopped early, or was lost, for a reason."""


class Advisor:
    """Optuna's sampler, which knows the scores of all trials before."""

    def __init__(self, space: Space, seed: int, known: Iterable[Trial]) -> None:
        """Raises InputError where Optuna is not installed."""
        try:
            import optuna
        except ImportError as error:
            raise InputError("--optuna: it is not installed. pip install 'beamclip[optuna]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._space = space
        self._distributions = {name: self._distribution(choice) for name, choice in space.items()}
        known = list(known)
        # Another seed at each start: the first one's draws were used.
        sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, Any] = {}
        self._tried = [trial.settings for trial in known]
        for trial in known:
            if trial.score is not None:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=self._numbers(trial.settings),
                        distributions=self._distributions,
                        value=trial.score,
                    )
                )

    def ask(self, number: int) -> Settings:
        """Settings for a trial; as far as there are any, some that were not tried before."""
        for left in reversed(range(ASKED_AGAIN)):
            asked = self._study.ask(self._distributions)
            settings = {
                name: choice.values[asked.params[name]] if isinstance(choice, Values) else asked.params[name]
                for name, choice in self._space.items()
            }
            if settings not in self._tried or not left:
                break
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        self._asked[number] = asked
        self._tried.append(settings)
        return settings

    def tell(self, number: int, score: float | None) -> None:
        """What came of a trial; None where it has no score."""
        if number in self._asked:
            failed = self._optuna.trial.TrialState.FAIL if score is None else None
            self._study.tell(self._asked.pop(number), score, state=failed)

    def _distribution(self, choice: Values | Range) -> Any:
        if isinstance(choice, Range):
            return self._optuna.distributions.FloatDistribution(choice.low, choice.high, log=True)
        # By their places: Optuna takes no lists for values, and of numbers the order tells it something.
        places = len(choice.values)
        ordered = all(isinstance(value, int | float) for value in choice.values)
        if ordered and list(choice.values) == sorted(choice.values):
            return self._optuna.distributions.IntDistribution(0, places - 1)
        return self._optuna.distributions.CategoricalDistribution(range(places))

    def _numbers(self, settings: Settings) -> dict[str, Any]:
        return {
            name: choice.values.index(settings[name]) if isinstance(choice, Values) else settings[name]
            for name, choice in self._space.items()
        }


class Suggestions(Searcher):
    """Trials in the order in which they are to run: first those on a list, then those of an advisor."""

    def __init__(self, listed: Iterable[Trial], advisor: Advisor | None, numbers: Iterable[int]) -> None:
        """Args:
        numbers: of the trials that the advisor is asked for.
        """
        super().__init__(metric=METRIC, mode="max")
        self._listed = deque(listed)
        self._advisor = advisor
        self._numbers = deque(numbers)
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._listed) + len(self._numbers)

    def suggest(self, trial_id: str) -> Any:
        """The next trial; the names are those of Tune's interface."""
        if self._listed:
            trial = self._listed.popleft()
            number, settings = trial.number, trial.settings
        elif self._advisor is not None and self._numbers:
            number = self._numbers.popleft()
            settings = self._advisor.ask(number)
        else:
            return Searcher.FINISHED
        self._running[trial_id] = number
        return {"number": number, "settings": settings}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the score on."""
        number = self._running.pop(trial_id)
        score = None if error or result is None else result.get(METRIC)
        if self._advisor is not None:
            self._advisor.tell(number, None if score == NO_SCORE else score)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it was given, to be restored by itself, which never happens here."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials are written down elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Ear(ray.tune.Callback):
    """Tune's callbacks, passed on."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.started(trial.config["number"], trial.config["settings"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.listener.reported(trial.config["number"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.ended(trial.config["number"], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.ended(trial.config["number"], _cause(str(trial.get_error() or "")))


class _StopWhen(ray.tune.Stopper):
    """Ends all trials when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._is_set = event.is_set

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._is_set()


def tune_environment(workers: WorkersConfig) -> dict[str, str]:
    """What is to be in the environment of the trials' processes; Tune's part is set in this one, too."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return _ENVIRONMENT if workers.use_gpu else {**_ENVIRONMENT, **CPU_WORKER_ENVIRONMENT}


def resources(workers: WorkersConfig) -> dict[str, float]:
    """What Tune sets aside for a trial: all of it for one worker, which runs in the trial's process."""
    return workers.resources if workers.num_workers == 1 else {"CPU": CPUS_BESIDE_WORKERS}


def run_trials(
    shared: Shared,
    suggestions: Suggestions,
    search: SearchConfig,
    concurrent: int,
    listener: Listener,
    interrupted: threading.Event,
) -> None:
    """Run all trials, so many at a time, until the last one ended or the event is set.

    A trial whose process is lost is started again, as often as the workers' max_failures says; one that fails
    otherwise says so in a report. Neither ends the others.
    """
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    workers = shared.base.workers
    ladder = ASHAScheduler("scored", max_t=search.scores, reduction_factor=REDUCTION, stop_last_trials=False)
    with tempfile.TemporaryDirectory(prefix="beamclip-tune-", ignore_cleanup_errors=True) as scratch:
        ray.tune.Tuner(
            ray.tune.with_resources(ray.tune.with_parameters(run_trial, shared=shared), resources(workers)),
            tune_config=ray.tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=suggestions,
                scheduler=ladder if search.asha and search.scores > 1 else FIFOScheduler(),
                num_samples=len(suggestions),
                max_concurrent_trials=concurrent,
                # Its imports take longer than many a trial.
                reuse_actors=True,
                trial_dirname_creator=_name,
                trial_name_creator=_name,
            ),
            run_config=ray.tune.RunConfig(
                # Tune keeps nothing that a later start reads.
                name="sweep",
                storage_path=scratch,
                verbose=0,
                stop=_StopWhen(interrupted),
                callbacks=[_Ear(listener)],
                failure_config=ray.tune.FailureConfig(max_failures=workers.max_failures),
            ),
        ).fit()


def _cause(traceback: str) -> str:
    """The last line of the last error, of a process or a node that was lost mostly."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    if not lines or "ActorDied" in traceback or "actor died" in traceback:
        return "its process was lost, more often than --max-failures allows. Most often memory ran out"
    return lines[-1]


def _name(trial: Any) -> str:
    return f"{trial.config['number']:03d}"
